"""Tokens guessed from the text itself: the same answers, in fewer steps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tiny_gpt
from gptport_backend.prompt_lookup import PromptLookup

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Answer, Served

REPEATED = "the cat sat on the mat, " * 4
FORM = r"(the cat sat on the mat, ){6}"
FEW_LETTERS = {"logit_bias_ids": [*b"thecason ,m"], "logit_bias_values": [15.0] * 11}


@pytest.mark.parametrize(
    ("tokens", "most", "guess"),
    [
        ([1, 2, 3, 4, 5, 6, 1, 2, 3], 8, [4, 5, 6]),  # as many as are alike
        ([1, 2, 3, 4, 5, 6, 1, 2, 3], 2, [4, 5]),
        ([9, 1, 2, 3, 4, 0, 1, 2, 3, 5, 9, 1, 2, 3], 8, [4, 0, 1, 2]),  # the longest, not the latest
        ([1, 2, 3, 4, 0, 1, 2, 3, 5, 0, 0, 1, 2, 3], 8, [5, 0, 0, 1]),
        ([1, 2, 3, 4, 7, 1, 2, 3, 5, 8, 1, 2, 3], 8, [5, 8, 1]),  # the latest of equals
        ([7] * 5, 8, [7] * 4),
        ([1, 2] * 6, 8, [1, 2, 1, 2, 1, 2, 1, 2]),  # in circles
        ([1, 2, 3, 4, 5, 2, 3], 8, []),
        ([1, 2, 3, 1, 2, 3], 0, []),
        ([1, 2, 3, 1, 2, 3], -1, []),
        ([1], 8, []),
    ],
)
def test_what_followed_the_last_time_is_guessed(tokens: list[int], most: int, guess: list[int]) -> None:
    assert PromptLookup(tokens).guess(most) == guess


class Runs:
    """How often the graph runs with one token a row, and with several of one row."""

    def __init__(self, served: Served) -> None:
        self.decoded = self.extended = 0
        self._decode, self._extend = served.runner.decode, served.runner.extend
        served.runner.decode, served.runner.extend = self.decode, self.extend  # type: ignore[method-assign]

    def decode(self, *arguments: Any) -> Any:
        self.decoded += 1
        return self._decode(*arguments)

    def extend(self, *arguments: Any) -> Any:
        self.extended += 1
        return self._extend(*arguments)


def both(served: Served, **inputs: Any) -> tuple[Answer, Answer]:
    """The answers without and with guesses."""
    inputs = {"max_tokens": 120, "stream": True, **inputs}
    if "input_ids" not in inputs:
        inputs = {"text_input": REPEATED, **inputs}
    return served.ask(**inputs).wait(), served.ask(**inputs, prompt_lookup=8).wait()


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"text_input": "b"},  # an end-of-text token ends it
        {"text_input": "zzz", "min_tokens": 80},
        {"temperature": 0.5, "seed": 3},
        {"temperature": 0.4, "seed": 4, "top_p": 0.9, **FEW_LETTERS},
        {"temperature": 0.7, "seed": 5, "top_k": 3, "n": 2},
        {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"bad_words": ["at", "e"]},
        {"regex": FORM, "max_tokens": 400},
        {"regex": FORM, "max_tokens": 50, "temperature": 1.0, "seed": 1},
        {"input_ids": [5, 6, 7] * 190, "max_tokens": 100},  # to the model's length
    ],
)
def test_the_answer_is_the_same(serve: Callable[..., Served], inputs: dict[str, Any]) -> None:
    served = serve()
    without, guessed = both(served, **inputs)
    assert (guessed.error, without.error) == ("", "")
    for index in range(inputs.get("n", 1)):
        mine, plain = guessed.of(index), without.of(index)
        assert (mine.token_ids, mine.text, mine.finish_reason) == (
            plain.token_ids,
            plain.text,
            plain.finish_reason,
        )
    assert served.engine._tally.guessed_tokens


def test_a_text_that_repeats_takes_fewer_steps(serve: Callable[..., Served]) -> None:
    served = serve()
    runs = Runs(served)
    answer = served.ask(text_input=REPEATED, regex=FORM, max_tokens=400, prompt_lookup=16).wait()
    tally = served.engine._tally
    assert answer.text == "the cat sat on the mat, " * 6
    assert runs.decoded + runs.extended < len(answer.token_ids) / 4
    assert 100 < tally.right_guesses <= tally.guessed_tokens
    assert len(answer.token_ids) <= runs.decoded + runs.extended + tally.right_guesses + 2


def test_the_log_probabilities_are_the_same(serve: Callable[..., Served]) -> None:
    without, guessed = both(serve(), regex=FORM, logprobs=3)
    for plain, mine in zip(without.pieces, guessed.pieces, strict=True):
        for one, other in zip(plain.logprobs, mine.logprobs, strict=True):
            assert one.top_ids == other.top_ids
            np.testing.assert_allclose([one.token, *one.top], [other.token, *other.top], atol=1e-4)


def test_a_stop_word_among_the_guessed_tokens_ends_the_text(serve: Callable[..., Served]) -> None:
    without, guessed = both(serve(), regex=FORM, stop_words=["on the mat"])
    assert guessed.text == without.text == "the cat sat "
    assert (guessed.finish_reason, guessed.token_ids) == ("stop", without.token_ids)


def test_what_is_kept_of_it_is_right(
    serve: Callable[..., Served], continuation: Callable[[str, int], list[int]]
) -> None:
    served = serve()
    answer = served.ask(text_input=REPEATED, max_tokens=90, prompt_lookup=8).wait()
    text = [*served.tokenizer.encode(REPEATED).ids, *answer.token_ids]
    reused = served.engine._tally.reused_tokens
    again = served.ask(input_ids=text[:-20], max_tokens=20).wait()
    assert served.engine._tally.reused_tokens > reused
    assert again.token_ids == text[-20:] == continuation(REPEATED, 90)[-20:]


def test_those_that_come_meanwhile_and_it_get_what_they_get_alone(
    serve: Callable[..., Served], continuation: Callable[[str, int], list[int]]
) -> None:
    served = serve(max_batch_size=3, max_prefill_tokens=64)
    long = served.ask(text_input=REPEATED, max_tokens=300, stream=True, prompt_lookup=8)
    long.wait_for_first()
    prompts = [REPEATED[:50], "hello", REPEATED[7:]]
    others = []
    for prompt in prompts:
        others.append(served.ask(text_input=prompt, max_tokens=30, prompt_lookup=4))
        time.sleep(0.01)
    assert long.wait().token_ids == continuation(REPEATED, 300)
    for prompt, other in zip(prompts, others, strict=True):
        assert other.wait().token_ids == continuation(prompt, 30)


def test_its_bounds(serve: Callable[..., Served]) -> None:
    served = serve()
    for wrong in (-1, 33):
        with pytest.raises(Exception, match=f"prompt_lookup is {wrong}; it must be from 0 to 32"):
            served.ask(text_input="a", prompt_lookup=wrong)
    end = [5, 6, 7] * (tiny_gpt.MAX_LENGTH // 3)
    assert len(served.ask(input_ids=end[:-1], prompt_lookup=32).wait().token_ids) == 1
