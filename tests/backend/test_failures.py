"""What fails in the engine fails one request, or those of one step; the loop and all others go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from conftest import hold
from test_engine import slots_in_use, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Served


def test_a_failed_step_fails_those_in_it_and_the_next_request_is_answered(
    serve: Callable[..., Served], caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    expected = served.ask(text_input="hello", max_tokens=5).wait().token_ids
    decode, served.runner.decode = served.runner.decode, _broken  # type: ignore[method-assign]
    failed = [served.ask(name, text_input="hello", max_tokens=5, n=2) for name in ("first", "second")]
    for answer in failed:
        assert answer.wait().error == "the engine failed: out of luck"
    assert "'second' failed" in caplog.text
    served.runner.decode = decode  # type: ignore[method-assign]
    assert served.ask(text_input="hello", max_tokens=5).wait().token_ids == expected
    wait_until(lambda: slots_in_use(served) == 0)


def _broken(*_: Any) -> Any:
    raise RuntimeError("out of luck")


class Panic(BaseException):
    """As pyo3's PanicException, what tokenizers and llguidance raise where their Rust code gives up, no Exception."""


def _panic(*_: Any) -> Any:
    raise Panic("out of range")


def test_a_panic_in_a_step_fails_those_in_it_and_the_loop_goes_on(serve: Callable[..., Served]) -> None:
    served = serve()
    expected = served.ask(text_input="hello", max_tokens=5).wait().token_ids
    decode, served.runner.decode = served.runner.decode, _panic  # type: ignore[method-assign]
    assert served.ask(text_input="hello", max_tokens=5).wait().error == "the engine failed: out of range"
    served.runner.decode = decode  # type: ignore[method-assign]
    assert served.ask(text_input="hello", max_tokens=5).wait().token_ids == expected


@pytest.mark.parametrize(
    ("place", "inputs"),
    [
        ("gptport_backend.text.StopFilter.flush", {"stop_words": ["zq"], "n": 2}),
        ("gptport_backend.grammar.Constraint.forbid", {"regex": "[a-z]{30}"}),
        ("gptport_backend.grammar.Constraint.append", {"regex": "[a-z]{30}", "temperature": 1.0}),
        ("gptport_backend.beams.BeamSearch.extend", {"beam_width": 2}),
        ("gptport_backend.likelihood.PromptScore.add", {"prompt_logprobs": 0}),
    ],
)
def test_a_panic_for_one_request_hurts_only_that(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, place: str, inputs: dict[str, Any]
) -> None:
    served = serve()
    long = {"text_input": "hello", "max_tokens": 300, "ignore_eos": True}
    expected = served.ask(**long).wait().token_ids
    go_on = hold(served, "decode")
    other = served.ask(**long, stream=True)
    wait_until(lambda: slots_in_use(served) == 1)
    monkeypatch.setattr(place, _panic)
    bad = served.ask(text_input="hello", max_tokens=10, **inputs)
    fail = bad.fail

    def failed(message: str) -> None:
        monkeypatch.undo()
        fail(message)

    bad.fail = failed  # type: ignore[method-assign]
    go_on.set()
    assert bad.wait().error == "the engine failed: out of range"
    assert other.wait().token_ids == expected
    assert served.ask(**long).wait().token_ids == expected
    wait_until(lambda: slots_in_use(served) == 0)


def test_what_fails_before_anything_runs_fails_one_request_after_the_other(
    serve: Callable[..., Served],
) -> None:
    served = serve()
    expected = served.ask(text_input="hello", max_tokens=5).wait().token_ids
    find, served.engine._reuse.find = served.engine._reuse.find, _broken  # type: ignore[method-assign]
    for answer in [served.ask(text_input="hello", max_tokens=5, n=2) for _ in range(2)]:
        assert answer.wait().error == "the engine failed: out of luck"
    served.engine._reuse.find = find  # type: ignore[method-assign]
    assert served.ask(text_input="hello", max_tokens=5).wait().token_ids == expected


def test_a_sink_that_fails_hurts_only_its_own_request_which_the_log_names(
    serve: Callable[..., Served], caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    go_on = hold(served, "prefill")
    other = served.ask("good", text_input="hello", max_tokens=30, stream=True)
    bad = served.ask("bad", text_input="hello", max_tokens=30, stream=True)
    bad.send = _broken  # type: ignore[method-assign]
    go_on.set()
    assert bad.wait().error
    assert other.wait().finish_reason == "length"
    assert caplog.messages == ["request 'bad' failed"]


def test_a_sampler_that_fails_hurts_only_its_own_request(serve: Callable[..., Served]) -> None:
    served = serve()
    expected = served.ask(text_input="hello", max_tokens=40).wait().token_ids
    decode, steps = served.runner.decode, []

    def broken_for_the_second(*arguments: Any) -> Any:
        logits = decode(*arguments)
        steps.append(len(arguments[1]))
        if steps[-1] == 3:
            logits.on_host(range(3))[1] = float("nan")
        return logits

    served.runner.decode = broken_for_the_second  # type: ignore[method-assign]
    several = {"text_input": "hello", "max_tokens": 40, "n": 3}
    answers = [served.ask(**several, logprobs=1).wait()]
    assert "not finite" in answers[0].error
    go_on = hold(served, "prefill")
    answers = [served.ask(text_input="hello", max_tokens=40, **more) for more in ({}, {"logprobs": 1}, {})]
    go_on.set()
    first, second, third = (answer.wait() for answer in answers)
    assert "not finite" in second.error
    assert (first.token_ids, third.token_ids) == (expected, expected)
    assert 3 in steps


def test_memory_that_is_short_for_a_prefix_hurts_nobody(serve: Callable[..., Served]) -> None:
    served = serve()
    prompt = "the quick brown fox jumps over the lazy dog"
    first = served.ask(text_input=prompt, max_tokens=5).wait().token_ids
    wait_until(lambda: served.engine._tally.prefix_bytes > 0)
    memory, allocate = served.engine._prefixes._memory, served.engine._prefixes._memory.allocate

    def short(shape: tuple[int, ...], dtype: str) -> Any:
        if shape[0] == len(served.manifest.cache.tensors):
            raise MemoryError("no memory is left")
        return allocate(shape, dtype)

    memory.allocate = short  # type: ignore[method-assign]
    other = served.ask(text_input="a", max_tokens=200)
    for answer in (served.ask(text_input=prompt + " again", max_tokens=5) for _ in range(2)):
        assert answer.wait().error == ""
    assert (other.wait().error, len(other.token_ids)) == ("", 200)
    assert served.engine._prefixes.bytes == 0
    assert served.ask(text_input=prompt, max_tokens=5).wait().token_ids == first


def test_metrics_that_cannot_be_published_stop_nothing(serve: Callable[..., Served]) -> None:
    served = serve()
    served.engine._publisher.publish = _broken  # type: ignore[method-assign]
    for _ in range(2):
        assert served.ask(text_input="hello", max_tokens=3).wait().finish_reason == "length"
