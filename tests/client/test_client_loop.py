"""The client's own loop: its sequences on the server, and where its tokenizer comes from."""

from __future__ import annotations

import hashlib

import pytest

from gptport_client import Client, DeadlineExceeded, InvalidRequest, ModelNotFound, ProtocolError, ServerError
from toy_checks import eventually
from toy_model import next_logits

PROMPT = "The quick brown 世界"


def test_no_token_is_computed_that_nobody_asked_for(client, toy):
    toy.eos_token_ids = ""
    client.generate(PROMPT, max_tokens=5, loop="client")
    assert len(toy.steps) == 5
    assert [step["start"] for step in toy.steps] == [True, False, False, False, False]
    assert [step["end"] for step in toy.steps] == [False, False, False, False, True]
    assert not toy.sequences


def test_one_token_is_start_and_end_at_once(client, toy):
    client.generate(PROMPT, max_tokens=1, loop="client")
    assert [(step["start"], step["end"]) for step in toy.steps] == [(True, True)]


def test_sequence_ids_are_random_and_not_zero(client, toy):
    for _ in range(3):
        client.generate(PROMPT, max_tokens=2, loop="client")
    ids = {step["sequence"] for step in toy.steps}
    assert len(ids) == 3
    assert all(0 < sequence < 2**63 for sequence in ids)


def test_an_end_of_text_token_ends_the_sequence_on_the_server(client, toy):
    ids = toy.tokenizer.encode(PROMPT).ids
    toy.eos_token_ids = str(int(next_logits(ids, toy.vocab_size).argmax()))
    result = client.generate(PROMPT, loop="client")
    assert (result.finish_reason, len(result.token_ids)) == ("stop", 1)
    assert eventually(lambda: len(toy.steps) == 2 and not toy.sequences)


def test_a_special_token_among_the_stop_strings_ends_the_text(client, toy):
    toy.eos_token_ids = ""
    bias = {0: 12.0}
    usual = client.generate(PROMPT, max_tokens=40, logit_bias=bias, loop="client")
    assert 0 in usual.token_ids
    result = client.generate(PROMPT, max_tokens=40, logit_bias=bias, stop=["<eos>", "nowhere"], loop="client")
    end = usual.token_ids.index(0) + 1
    assert (result.finish_reason, result.token_ids) == ("stop", usual.token_ids[:end])


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_leaving_early_ends_the_sequence_on_the_server(client, toy, leave):
    toy.eos_token_ids = ""
    stream = client.stream(PROMPT, loop="client")
    next(stream)
    assert toy.sequences
    if leave == "close":
        stream.close()
    else:
        del stream
    assert eventually(lambda: not toy.sequences)


def test_a_timeout_ends_the_sequence_and_cancels_no_step(client, toy):
    toy.eos_token_ids, toy.delay, timeout = "", 0.2, 0.5
    while not toy.steps:  # on a slow machine the time may be over before the first
        with pytest.raises(DeadlineExceeded):
            client.generate(PROMPT, loop="client", timeout=timeout)
        eventually(lambda: not toy.sequences)
        timeout *= 2
    assert eventually(lambda: toy.steps[-1]["end"])
    assert not any(step["end"] for step in toy.steps[:-1])


def test_closing_the_client_waits_for_the_end_of_sequences(toy):
    toy.eos_token_ids, toy.delay = "", 0.1
    with Client(toy.url, model="toy") as client:
        stream = client.stream(PROMPT, loop="client")
        next(stream)
        stream.close()
    assert not toy.sequences


def test_a_sequence_that_the_server_dropped_is_a_server_error(client, toy):
    toy.eos_token_ids = ""
    stream = client.stream(PROMPT, loop="client")
    next(stream)
    toy.sequences.clear()
    with pytest.raises(ServerError, match="gave up the sequence after"):
        list(stream)


def test_ids_beyond_the_vocabulary_are_refused(client):
    with pytest.raises(InvalidRequest, match="70000"):
        client.generate([70000], loop="client")


def test_the_tokenizer_is_fetched_once_and_kept(toy, cache):
    for _ in range(2):
        with Client(toy.url, model="toy") as client:
            client.generate(PROMPT, max_tokens=2, loop="client")
            client.generate(PROMPT, max_tokens=2, loop="client")
    assert len([request for request in toy.requests if "file" in request.parameters]) == 1
    assert [file.name for file in cache.iterdir()] == [
        f"{hashlib.sha256(toy.tokenizer_file).hexdigest()}.json"
    ]


def test_a_damaged_cache_is_fetched_again(toy, cache):
    path = cache / f"{hashlib.sha256(toy.tokenizer_file).hexdigest()}.json"
    cache.mkdir(parents=True)
    path.write_bytes(toy.tokenizer_file[:100])
    with Client(toy.url, model="toy") as client:
        client.generate(PROMPT, max_tokens=2, loop="client")
    assert path.read_bytes() == toy.tokenizer_file


def test_a_cache_that_cannot_be_written_does_no_harm(client, cache):
    cache.parent.parent.write_text("a file where the directory would be")
    assert client.generate(PROMPT, max_tokens=2, loop="client").token_ids


def test_a_tokenizer_of_another_export_is_refused(client, toy):
    toy.config["tokenizer_sha256"] = "0" * 64
    with pytest.raises(ProtocolError, match="one export"):
        client.generate(PROMPT, loop="client")


def test_only_the_step_model_needs_a_tokenizer(toy, tmp_path):
    expected = Client(toy.url, model="toy").generate(PROMPT, max_tokens=8).text
    toy.models.remove("toy")
    with Client(toy.url, model="toy") as client, pytest.raises(ModelNotFound, match="tokenizer="):
        client.generate(PROMPT, loop="client")
    (tmp_path / "tokenizer.json").write_bytes(toy.tokenizer_file)
    for tokenizer in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path), toy.tokenizer):
        with Client(toy.url, model="toy", tokenizer=tokenizer) as client:
            assert client.generate(PROMPT, max_tokens=8, loop="client").text == expected


@pytest.mark.parametrize("parameter", ["gptport_schema", "max_length", "eos_token_ids"])
def test_a_model_without_our_parameters_is_a_protocol_error(client, toy, parameter):
    toy.config[parameter] = None
    with pytest.raises(ProtocolError, match=parameter):
        client.generate(PROMPT, loop="client")


@pytest.mark.parametrize(
    ("parameter", "value"), [("gptport_schema", "2"), ("max_length", "long"), ("gptport_kind", "x")]
)
def test_a_configuration_of_another_kind_is_a_protocol_error(client, toy, parameter, value):
    toy.config[parameter] = value
    with pytest.raises(ProtocolError, match=value):
        client.generate(PROMPT, loop="client")
