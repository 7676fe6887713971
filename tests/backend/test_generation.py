"""What ends an answer, what must not be in it, and what comes with it: through the whole engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tiny_gpt
from conftest import hold
from gptport_backend.errors import RequestError, Unavailable
from test_engine import slots_in_use, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Answer, Clock, Served

ENDS_EARLY = "b"  # the tiny GPT ends the answer to this prompt by itself


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve()


def asked(served: Served, text: str = "hello", max_tokens: int = 20, **inputs: Any) -> Answer:
    answer = served.ask(text_input=text, max_tokens=max_tokens, **inputs).wait()
    assert answer.error == ""
    return answer


def test_ignore_eos_goes_on_to_the_limit(served: Served) -> None:
    usual = asked(served, ENDS_EARLY, 100)
    answer = asked(served, ENDS_EARLY, 100, ignore_eos=True)
    assert (usual.finish_reason, answer.finish_reason) == ("stop", "length")
    assert answer.token_ids[: len(usual.token_ids)] == usual.token_ids
    assert len(answer.token_ids) == 100


def test_min_tokens_keeps_end_of_text_away(served: Served) -> None:
    usual = len(asked(served, ENDS_EARLY, 100).token_ids)
    answer = asked(served, ENDS_EARLY, 100, min_tokens=usual + 1)
    assert tiny_gpt.EOS not in answer.token_ids[: usual + 1]


def test_a_stop_token_ends_the_answer_as_end_of_text_does(served: Served) -> None:
    usual = asked(served)
    stop = usual.token_ids[5]
    answer = asked(served, stop_token_ids=[stop])
    end = usual.token_ids.index(stop) + 1
    assert (answer.finish_reason, answer.token_ids) == ("stop", usual.token_ids[:end])
    assert answer.text == served.tokenizer.decode(usual.token_ids[: end - 1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_special_token_may_be_a_stop_word(served: Served, stream: bool) -> None:
    """No text shows one: found by its text it never would be."""
    usual = asked(served, ENDS_EARLY, 100)
    answer = asked(served, ENDS_EARLY, 100, ignore_eos=True, stop_words=["nowhere", "<|end|>"], stream=stream)
    assert (answer.token_ids, answer.text) == (usual.token_ids, usual.text)
    assert answer.finish_reason == "stop"


def test_bad_words_are_not_in_the_text(served: Served) -> None:
    usual = asked(served).text
    for bad in (usual[2], usual[4:7]):
        assert bad in usual
        assert bad not in asked(served, bad_words=[bad]).text


def test_a_biased_token_comes_every_time(served: Served) -> None:
    answer = asked(served, logit_bias_ids=[65], logit_bias_values=[1000.0])
    assert answer.token_ids == [65] * 20


def test_a_frequency_penalty_lessens_repetition(served: Served) -> None:
    usual, changed = asked(served, "zzz", 60), asked(served, "zzz", 60, frequency_penalty=2.0)
    assert len(set(changed.token_ids)) > len(set(usual.token_ids))


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_come_with_their_tokens(served: Served, stream: bool) -> None:
    answer = asked(served, stream=stream, logprobs=2)
    for piece in answer.pieces:
        assert len(piece.logprobs) == len(piece.token_ids)
    found = [each for piece in answer.pieces for each in piece.logprobs]
    assert [each.top_ids[0] for each in found] == answer.token_ids  # greedy
    assert all(each.top[0] == each.token > each.top[1] for each in found)
    assert all(np.exp(each.token) <= 1 for each in found)


def test_without_logprobs_there_are_none(served: Served) -> None:
    assert all(not piece.logprobs for piece in asked(served).pieces)


def test_a_timeout_ends_the_answer_with_what_is_there(serve: Callable[..., Served], clock: Clock) -> None:
    served = serve(max_batch_size=1)
    go_on, decode = hold(served, "prefill"), served.runner.decode

    def slow(*arguments: Any) -> Any:
        clock.now += 0.02
        return decode(*arguments)

    served.runner.decode = slow  # type: ignore[method-assign]
    running = served.ask(text_input="a", max_tokens=500, ignore_eos=True, timeout=0.3)
    waiting = served.ask(text_input="a", max_tokens=5, timeout=0.05)
    go_on.set()
    assert (running.wait().finish_reason, waiting.wait().finish_reason) == ("timeout", "timeout")
    assert 0 < len(running.token_ids) < 500
    assert waiting.token_ids == []
    assert asked(served).finish_reason in ("length", "stop")


def test_a_full_queue_refuses_at_once_and_answers_what_it_took(serve: Callable[..., Served]) -> None:
    served = serve(max_batch_size=4, max_waiting=50)
    all_sent = hold(served, "prefill")
    answers, refusals = [], set()
    for number in range(1000):
        try:
            answers.append(served.ask(text_input=f"{number}", max_tokens=5))
        except Unavailable as error:
            refusals.add(str(error))
    all_sent.set()
    assert 50 <= len(answers) <= 54
    assert all("max_waiting is 50; try again later" in refusal for refusal in refusals)
    assert all(answer.wait().finish_reason == "length" for answer in answers)


def test_the_answers_of_a_request_count_in_the_queue(serve: Callable[..., Served]) -> None:
    served = serve(max_batch_size=1, max_waiting=5)
    all_sent = hold(served, "decode")
    running = served.ask(text_input="a", max_tokens=500, ignore_eos=True, stream=True)
    wait_until(lambda: slots_in_use(served) == 1)
    answers = [served.ask(text_input="hello", max_tokens=3, n=3)]
    with pytest.raises(
        Unavailable, match="the queue is full: 3 requests wait, n is 3, and max_waiting is 5;"
    ):
        served.ask(text_input="hello", max_tokens=3, n=3)
    answers.append(served.ask(text_input="hello", max_tokens=3, n=2))
    with pytest.raises(Unavailable, match="the queue is full: 5 requests wait, and max_waiting is 5;"):
        served.ask(text_input="hello", max_tokens=3)
    with pytest.raises(RequestError, match="n is 6; it must be at most max_waiting, which is 5"):
        served.ask(text_input="hello", n=6)
    running.cancelled = True
    all_sent.set()
    assert {piece.finish_reason for answer in answers for piece in answer.wait().pieces} == {"length"}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"logit_bias_ids": [1, 2], "logit_bias_values": [1.0]}, "logit_bias_values has 1 numbers for 2"),
        ({"logit_bias_ids": [257], "logit_bias_values": [1.0]}, "logit_bias_ids has the id 257"),
        ({"stop_token_ids": [1000]}, "stop_token_ids has the id 1000; the vocabulary ends at 256"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9; it must be at most max_tokens, which is 8"),
        ({"timeout": 0.0}, "timeout is 0.0; it must be a finite number above 0"),
        ({"typical_p": 0.0}, "typical_p is 0.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        ({"logprobs": 21}, "logprobs is 21; it must be from 0 to 20"),
        ({"logit_bias_ids": [1, 1], "logit_bias_values": [1.0, 1.0]}, "each once"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(served: Served, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        served.ask(text_input="hello", **inputs)


def test_when_every_token_is_forbidden_the_request_says_so(served: Served) -> None:
    letters = [served.tokenizer.decode([token]) for token in range(tiny_gpt.VOCAB)]
    words = sorted({letter for letter in letters if letter})
    ends = list(range(tiny_gpt.VOCAB))
    answer = served.ask(text_input="hello", bad_words=words, stop_token_ids=ends, min_tokens=2)
    other = served.ask(text_input="hello", max_tokens=5)
    assert "there is no token to choose" in answer.wait().error
    assert other.wait().finish_reason == "length"
