"""Beam search finds what going through all continuations by hand finds, and leaves nothing on the server."""

from __future__ import annotations

import numpy as np
import pytest

from gptport_client import Client, InvalidRequest
from toy_model import next_logits

PROMPT = [5, 6, 7]


def by_hand(toy, beams, length, length_penalty):
    """Every step's candidates in full: (ids, log-probability) of the best, best first."""
    eos = {int(token) for token in toy.eos_token_ids.split(",") if token}

    def value(candidate):
        return -candidate[1] / len(candidate[0]) ** length_penalty

    live, done = [((), 0.0)], []
    for _ in range(length):
        everything = []
        for ids, total in live:
            logits = next_logits([*PROMPT, *ids], toy.vocab_size).astype(np.float64)
            logprobs = logits - np.log(np.exp(logits).sum())
            everything += [((*ids, token), total + logprobs[token]) for token in range(toy.vocab_size)]
        everything.sort(key=lambda candidate: -candidate[1])
        done = sorted(done + [each for each in everything[:beams] if each[0][-1] in eos], key=value)[:beams]
        live = [each for each in everything if each[0][-1] not in eos][:beams]
        if len(done) == beams and value(done[-1]) <= value(live[0]):
            return done
    return sorted(done + live, key=value)[:beams]


@pytest.mark.parametrize("eos", ["", ",".join(map(str, range(0, 300, 7))), ",".join(map(str, range(290)))])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [1, 3, 8])
def test_the_best_are_those_found_by_hand(client, toy, beams, length_penalty, eos):
    toy.eos_token_ids = eos
    found = client.beam_search(PROMPT, beams=beams, max_tokens=6, length_penalty=length_penalty)
    expected = by_hand(toy, beams, 6, length_penalty)
    assert [beam.token_ids for beam in found] == [ids for ids, _ in expected]
    assert [beam.logprob for beam in found] == pytest.approx([total for _, total in expected])


def test_one_beam_is_greedy(client, toy):
    toy.eos_token_ids = ""
    (beam,) = client.beam_search(PROMPT, beams=1, max_tokens=8)
    greedy = client.generate(PROMPT, max_tokens=8)
    assert (beam.token_ids, beam.text, beam.finish_reason) == (greedy.token_ids, greedy.text, "length")


def test_its_sequences_are_ended(toy):
    with Client(toy.url, model="toy") as client:
        client.beam_search(PROMPT, beams=3, max_tokens=4)
    assert len({step["sequence"] for step in toy.steps}) == 3
    assert not toy.sequences


def test_a_prefix_is_computed_again_only_where_a_beam_branches(client, toy):
    toy.eos_token_ids = ""
    client.beam_search(PROMPT, beams=2, max_tokens=6)
    appended = [len(step["ids"]) for step in toy.steps if not step["end"]]
    assert appended.count(1) >= len(appended) / 2


def test_processors_have_their_say(client):
    def ban(_, logits):
        logits[100:] = -np.inf
        return logits

    for beam in client.beam_search(PROMPT, beams=2, max_tokens=4, processors=[ban]):
        assert max(beam.token_ids) < 100


@pytest.mark.parametrize("options", [{"beams": 0}, {"beams": 65}, {"max_tokens": 0}, {"length_penalty": "a"}])
def test_wrong_options_are_refused(client, toy, options):
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        client.beam_search(PROMPT, **options)
    assert not toy.steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 1}, "beams is 1; give 2 or more"),
        ({"processors": [lambda _, logits: logits]}, "processors run in the client's own loop"),
    ],
)
def test_what_the_servers_loop_does_not_do_is_refused(client, toy, options, message):
    with pytest.raises(InvalidRequest, match=message):
        client.beam_search(PROMPT, loop="server", **options)
    assert not toy.requests
