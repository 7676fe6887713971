"""The engine with the tiny GPT: right answers whatever else runs, and nobody hurts anybody."""

from __future__ import annotations

import time
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tiny_gpt
from conftest import PATIENCE, Served, continuation_of, hold
from gptport_backend import manifest as manifests
from gptport_backend.engine import EngineOptions
from gptport_backend.errors import RequestError, Unavailable
from gptport_backend.generation import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Answer

PROMPTS = [
    "a",
    "hello world, how are you",
    "x" * 300,  # prefilled in chunks
    "the quick brown fox" * 6,
    "zzz",
    "1234567",
    "one more " * 20,
    "the end",
    "b",
    "q w e r t y",
]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def slots_in_use(served: Served) -> int:
    return len(served.engine._scheduler.running)


def test_prompts_that_arrive_one_by_one_get_the_tokens_they_get_alone(
    serve: Callable[..., Served], continuation: Callable[[str, int], list[int]]
) -> None:
    served = serve(max_batch_size=4, max_prefill_tokens=64)
    answers = []
    for prompt in PROMPTS:
        answers.append(served.ask(text_input=prompt, max_tokens=40, stream=True))
        time.sleep(0.002)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.wait().error == ""
        assert answer.token_ids == continuation(prompt, 40)


def test_a_stream_adds_up_to_the_one_response(serve: Callable[..., Served]) -> None:
    served = serve()
    whole = served.ask(text_input="hello", max_tokens=30).wait()
    stream = served.ask(text_input="hello", max_tokens=30, stream=True).wait()
    assert len(whole.pieces) == 1 < len(stream.pieces)
    assert (stream.text, stream.token_ids) == (whole.text, whole.token_ids)
    assert whole.text == served.tokenizer.decode(whole.token_ids)
    assert [piece.finish_reason for piece in stream.pieces[:-1]] == [""] * (len(stream.pieces) - 1)


def test_counts_and_finish_reason_length(serve: Callable[..., Served]) -> None:
    answer = serve().ask(text_input="hello", max_tokens=7).wait()
    piece = answer.pieces[0]
    assert (piece.num_input_tokens, piece.num_output_tokens, piece.finish_reason) == (5, 7, "length")


def test_an_end_of_text_token_ends_the_text_and_is_not_shown(serve: Callable[..., Served]) -> None:
    answer = serve().ask(text_input="b", max_tokens=100).wait()
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == tiny_gpt.EOS
    assert "<|end|>" not in answer.text


def test_a_sequence_ends_at_the_length_of_the_model(serve: Callable[..., Served]) -> None:
    served = serve()
    prompt = [5] * (tiny_gpt.MAX_LENGTH - 3)
    answer = served.ask(input_ids=prompt, max_tokens=100).wait()
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == 3


def test_a_stop_word_ends_the_text_before_it(serve: Callable[..., Served]) -> None:
    served = serve()
    whole = served.ask(text_input="zzz", max_tokens=30).wait().text
    stop = whole[10:13]
    answer = served.ask(text_input="zzz", max_tokens=30, stop_words=[stop], stream=True).wait()
    assert answer.finish_reason == "stop"
    assert answer.text == whole[: whole.index(stop)]


def test_the_prompt_comes_first_if_asked_for(serve: Callable[..., Served]) -> None:
    served = serve()
    alone = served.ask(text_input="hello", max_tokens=5).wait().text
    for inputs in ({"text_input": "hello"}, {"input_ids": served.tokenizer.encode("hello").ids}):
        answer = served.ask(**inputs, max_tokens=5, exclude_input_in_output=False).wait()
        assert answer.text == "hello" + alone


def test_the_same_seed_gives_the_same_text_whatever_else_runs(serve: Callable[..., Served]) -> None:
    served = serve()
    inputs: dict[str, Any] = {"text_input": "hello", "max_tokens": 20, "temperature": 1.5, "top_p": 0.9}
    alone = served.ask(**inputs, seed=7).wait()
    crowd = [served.ask(**inputs, seed=seed) for seed in range(10)]
    texts = [answer.wait().text for answer in crowd]
    assert texts[7] == alone.text
    assert len(set(texts)) > 1


def test_a_cancelled_request_frees_its_slot_for_the_next(serve: Callable[..., Served]) -> None:
    served = serve(max_batch_size=1)
    go_on = hold(served, "decode")
    endless = served.ask(text_input="a", max_tokens=500, stream=True)
    wait_until(lambda: slots_in_use(served) == 1)
    waiting, never = (served.ask(text_input="hello", max_tokens=3) for _ in range(2))
    never.cancelled = True
    endless.cancelled = True
    go_on.set()
    assert endless.wait().finish_reason == "cancelled"
    assert never.wait().finish_reason == "cancelled"
    assert waiting.wait().finish_reason == "length"
    wait_until(lambda: slots_in_use(served) == 0)


def test_a_long_prompt_does_not_stop_the_streams_in_flight(serve: Callable[..., Served]) -> None:
    served = serve(max_prefill_tokens=32)
    go_on = hold(served, "decode")
    stream = served.ask(text_input="a", max_tokens=200, stream=True)
    wait_until(lambda: slots_in_use(served) == 1)
    long = served.ask(input_ids=[3] * 480, max_tokens=1)  # fifteen chunks
    send, meanwhile = long.send, []

    def counted(*pieces: Any, **final: Any) -> None:
        meanwhile.append(len(stream.token_ids))
        send(*pieces, **final)

    long.send = counted  # type: ignore[method-assign]
    go_on.set()
    long.wait()
    assert meanwhile[0] >= 10
    stream.wait()


def test_logits_that_are_not_numbers_are_an_error(serve: Callable[..., Served]) -> None:
    served = serve()
    served.runner.prefill = _nan_for(served.runner.prefill)  # type: ignore[method-assign]
    assert "not finite" in served.ask(text_input="hello").wait().error
    served.runner.extend = _nan_for(served.runner.extend)  # type: ignore[method-assign]
    assert "not finite" in served.ask(text_input="hello", max_tokens=0, prompt_logprobs=0).wait().error


def _nan_for(prefill: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        logits = prefill(*arguments)
        array = logits if isinstance(logits, np.ndarray) else logits.on_host(range(len(arguments[2])))
        array[:] = float("nan")
        return logits

    return run


def test_a_prompt_that_is_too_long_is_refused_with_the_limit(serve: Callable[..., Served]) -> None:
    with pytest.raises(RequestError, match="the prompt has 600 tokens; tiny takes at most 599"):
        serve().ask(text_input="x" * tiny_gpt.MAX_LENGTH)


def test_a_prompt_of_many_megabytes_is_refused_before_it_is_encoded(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    monkeypatch.delattr(Vocabulary, "encode")
    with pytest.raises(RequestError, match="text_input has 10000000 characters"):
        served.ask(text_input="x" * 10_000_000)


def test_ids_outside_of_the_vocabulary_are_refused(serve: Callable[..., Served]) -> None:
    with pytest.raises(RequestError, match="input_ids has the id 257; the vocabulary ends at 256"):
        serve().ask(input_ids=[1, 257])


def test_closing_finishes_what_runs_and_takes_no_more(serve: Callable[..., Served]) -> None:
    served = serve()
    answers = [served.ask(text_input="hello", max_tokens=50) for _ in range(3)]
    served.engine.close(PATIENCE)
    assert [answer.wait().finish_reason for answer in answers] == ["length"] * 3
    with pytest.raises(Unavailable, match="shutting down"):
        served.ask(text_input="hello")


def test_closing_without_patience_fails_what_runs(serve: Callable[..., Served]) -> None:
    served = serve(max_batch_size=1)
    decode = served.runner.decode

    def while_closing(*arguments: Any) -> Any:
        wait_until(lambda: served.engine._deadline is not None)
        return decode(*arguments)

    served.runner.decode = while_closing  # type: ignore[method-assign]
    answers: list[Answer] = [served.ask(text_input="a", max_tokens=500) for _ in range(3)]
    served.engine.close(0)
    for answer in answers:
        assert "shutting down" in answer.wait().error


def test_random_load_gets_right_answers_and_leaves_nothing_behind(
    serve: Callable[..., Served], continuation: Callable[[str, int], list[int]]
) -> None:
    served = serve(max_batch_size=5, max_prefill_tokens=48)
    random = Random(3)
    asked = []
    for _ in range(60):
        prompt, count = random.choice(PROMPTS) + str(random.randrange(3)), random.randrange(1, 25)
        asked.append((prompt, count, served.ask(text_input=prompt, max_tokens=count, stream=True)))
        if random.random() < 0.3:
            random.choice(asked)[2].cancelled = True
        time.sleep(random.random() * 0.004)
    for prompt, count, answer in asked:
        assert answer.wait().error == ""
        expected = continuation(prompt, count)
        assert answer.token_ids == expected[: len(answer.token_ids)]
        assert answer.finish_reason == "cancelled" or answer.token_ids == expected
    wait_until(lambda: not served.engine._scheduler.busy)
    assert sum(served.engine._tally.requests.values()) == 60


def test_layers_with_unlike_caches_give_the_tokens_of_the_slow_way(tmp_path: Path) -> None:
    """Prefill, decode side by side, a copied prefix, and buffers that grow."""
    folder = tiny_gpt.write(tmp_path / "1", caches=tiny_gpt.UNLIKE)
    manifest = manifests.read(folder)
    assert {(each.heads, each.head_dim) for each in manifest.cache.tensors} == {(2, 16), (1, 32)}
    expected = continuation_of(folder)
    served = Served(folder, EngineOptions(max_batch_size=4, max_prefill_tokens=64))
    try:
        prefix = "a prefix that is long enough to be worth keeping, " * 5
        prompts = [prefix, *(prefix + end for end in ("one", "two", "three"))]
        served.ask(text_input=prefix, max_tokens=4).wait()
        answers = [served.ask(text_input=prompt, max_tokens=20) for prompt in prompts]
        assert [answer.wait().token_ids for answer in answers] == [expected(prompt, 20) for prompt in prompts]
        assert served.engine._tally.reused_tokens > 0
    finally:
        served.engine.close(0)
