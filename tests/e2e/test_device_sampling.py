"""The graph that draws tokens, inside the real Triton; on the CPU here."""

from __future__ import annotations

import pytest

from gptport.server import ServerError, running
from gptport_client import Client
from in_torch import PROMPTS

MODEL = "gpt2-tiny"
OPTIONS = [
    {},
    {"temperature": 0.9, "seed": 1},
    {"temperature": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "seed": 2},
    {
        "temperature": 1.0,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "logit_bias": {11: 2.0},
        "seed": 3,
    },
    {"temperature": 1.0, "seed": 4, "logprobs": 2, "bad_words": ["the"]},
]


def configured(repository, tmp_path, place):
    """A repository with the model, whose tokens are drawn there."""
    model = tmp_path / MODEL
    model.mkdir()
    for entry in (repository / MODEL).iterdir():
        (model / entry.name).symlink_to(entry.resolve())
    config = model / "config.pbtxt"
    text = config.read_text()
    config.unlink()
    config.write_text(f'{text}\nparameters {{ key: "sampler" value {{ string_value: "{place}" }} }}\n')
    return tmp_path


def test_the_answers_are_those_of_the_host(repository, client, tmp_path):
    host = client(MODEL)
    with (
        running(configured(repository, tmp_path, "graph")) as server,
        Client(server.address.grpc_url, model=MODEL) as graph,
    ):
        for options in OPTIONS:
            several = [
                [each.generate(text, max_tokens=20, **options) for text in PROMPTS] for each in (graph, host)
            ]
            ids, expected = ([answer.token_ids for answer in answers] for answers in several)
            assert ids == expected, options


def test_another_word_for_the_place_is_refused(repository, tmp_path):
    with (
        pytest.raises(
            ServerError, match=r"the parameter sampler in config.pbtxt is 'gpu'; it must be graph or host"
        ),
        running(configured(repository, tmp_path, "gpu")),
    ):
        pass
