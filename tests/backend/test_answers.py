"""Several answers to one request: each is the one that its seed gives alone, and the prompt is computed once."""

from __future__ import annotations

import pytest

from conftest import hold
from gptport_backend.answers import Answers
from gptport_backend.errors import RequestError
from gptport_backend.metrics import Tally
from gptport_backend.sequence import Piece
from test_engine import slots_in_use, wait_until

PROMPT = "the quick brown fox jumps over the lazy dog, "


class Response:
    """A sink that keeps what comes."""

    request_id = "one"

    def __init__(self) -> None:
        self.sent: list[tuple[list[int], bool]] = []
        self.errors: list[str] = []

    def send(self, pieces, *, final):
        self.sent.append(([piece.index for piece in pieces], final))

    def fail(self, message):
        self.errors.append(message)

    def is_cancelled(self):
        return False


def piece(index: int, reason: str = "") -> Piece:
    return Piece("", (), reason, 1, 1, index=index)


def test_the_last_answer_to_end_ends_a_stream() -> None:
    response = Response()
    answers = Answers(response, 2, tally := Tally(), stream=True)
    for each in (piece(0), piece(1, "stop"), piece(0), piece(0, "length")):
        answers.send(each)
    assert response.sent == [([0], False), ([1], False), ([0], False), ([0], True)]
    assert (tally.answers, tally.requests) == ({"stop": 1, "length": 1}, {"length": 1})
    assert sum(tally.request.counts) == 1


def test_one_response_has_all_answers_in_their_order() -> None:
    response = Response()
    answers = Answers(response, 3, tally := Tally(), stream=False)
    for index in (2, 0, 1):
        answers.send(piece(index, "stop"))
    assert response.sent == [([0, 1, 2], True)]
    assert (tally.answers, tally.requests) == ({"stop": 3}, {"stop": 1})


def test_if_one_fails_the_others_have_nobody_who_waits() -> None:
    response = Response()
    answers = Answers(response, 2, tally := Tally(), stream=True)
    assert not answers.is_cancelled()
    answers.fail("no")
    assert answers.is_cancelled()
    answers.send(piece(1, "cancelled"))
    answers.fail("again")
    assert (response.errors, response.sent) == (["no"], [])
    assert (tally.answers, tally.requests) == ({"error": 2}, {"error": 1})


def test_one_that_cannot_be_sent_is_counted_once() -> None:
    response, tally = Response(), Tally()
    answers = Answers(response, 1, tally, stream=True)
    response.send = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        answers.send(piece(0, "stop"))
    answers.fail("no")
    assert (tally.answers, tally.requests) == ({"error": 1}, {"error": 1})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["ab", PROMPT, PROMPT * 5], ids=["short", "long", "in chunks"])
@pytest.mark.parametrize(
    "inputs",
    [
        {"temperature": 1.0, "seed": 2**64 - 2, "stop_words": ["e", "11"], "logprobs": 2},
        {"temperature": 1.3, "seed": 5, "regex": "[a-z]{3,30}"},
        {"temperature": 0.0},
    ],
    ids=["sampled", "regex", "greedy"],
)
def test_each_is_the_one_that_its_seed_gives_alone(serve, inputs, prompt, stream) -> None:
    tiny, alone = serve(max_batch_size=4, max_prefill_tokens=64), serve(prefix_cache_bytes=0)
    answer = tiny.ask(text_input=prompt, max_tokens=25, n=6, stream=stream, **inputs).wait()
    expected = []
    for index in range(6):
        seed = {"seed": (inputs["seed"] + index) % 2**64} if "seed" in inputs else {}
        expected.append(alone.ask(text_input=prompt, max_tokens=25, **{**inputs, **seed}).wait())
    found = [answer.of(index) for index in range(6)]
    assert [(each.text, each.token_ids) for each in found] == [
        (each.text, each.token_ids) for each in expected
    ]
    assert [each.finish_reason for each in found] == [each.finish_reason for each in expected]
    for one, other in zip(found, expected, strict=True):
        logprobs = [[lp.token for piece in each.pieces for lp in piece.logprobs] for each in (one, other)]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)
    assert (len({each.text for each in found}) > 1) == ("seed" in inputs)
    assert stream or answer.responses == 1


def test_the_prompt_is_computed_once(serve) -> None:
    tiny = serve(max_batch_size=8)
    tiny.ask(text_input="short", max_tokens=5, n=8, temperature=1.0).wait()
    tally = tiny.engine._tally
    assert (tally.input_tokens, tally.reused_tokens) == (5 + 7, 7 * 4)


def test_answers_end_one_by_one_and_leave_nothing_behind(serve) -> None:
    tiny = serve(max_batch_size=3)
    answer = tiny.ask(
        text_input=PROMPT, max_tokens=60, n=7, temperature=2.0, seed=1, stop_words=["a", "e"], stream=True
    )
    answer.wait()
    assert len({len(answer.of(index).token_ids) for index in range(7)}) > 2
    wait_until(lambda: slots_in_use(tiny) == 0)
    tally = tiny.engine._tally
    assert (tally.answers.total(), tally.requests.total(), sum(tally.request.counts)) == (7, 1, 1)


def test_cancelled_all_end_and_those_that_wait_too(serve) -> None:
    tiny = serve(max_batch_size=2)
    go_on = hold(tiny, "decode")
    answer = tiny.ask(text_input=PROMPT, max_tokens=500, ignore_eos=True, n=5, stream=True)
    wait_until(lambda: slots_in_use(tiny) == 2)
    answer.cancelled = True
    go_on.set()
    assert answer.wait().error == ""
    assert [answer.of(index).finish_reason for index in range(5)] == ["cancelled"] * 5
    wait_until(lambda: not tiny.engine._scheduler.busy)


def test_out_of_time_all_end_with_what_is_there(serve, clock) -> None:
    tiny = serve(max_batch_size=2)
    go_on = hold(tiny, "decode")
    answer = tiny.ask(text_input=PROMPT, max_tokens=500, ignore_eos=True, n=5, timeout=1.0)
    wait_until(lambda: slots_in_use(tiny) == 2)
    clock.now = 1.0
    go_on.set()
    answer.wait()
    assert [answer.of(index).finish_reason for index in range(5)] == ["timeout"] * 5
    assert answer.responses == 1


def test_if_memory_is_short_they_take_turns(serve) -> None:
    alone = serve(prefix_cache_bytes=0)
    cache = alone.manifest.cache
    row = alone.manifest.max_length * cache.token_bytes
    narrow = serve(kv_cache_bytes=row, max_prefill_tokens=64)
    inputs = {"text_input": PROMPT, "max_tokens": 400, "ignore_eos": True, "temperature": 1.0}
    answer = narrow.ask(n=3, seed=4, **inputs)
    expected = [alone.ask(seed=4 + index, **inputs) for index in range(3)]
    answer.wait()
    assert [answer.of(i).token_ids for i in range(3)] == [each.wait().token_ids for each in expected]
    assert narrow.engine._tally.preemptions > 0


@pytest.mark.parametrize("n", [0, -1, 129])
def test_how_many_is_bounded(serve, n) -> None:
    with pytest.raises(RequestError, match=f"n is {n}; it must be from 1 to 128"):
        serve().ask(text_input="x", n=n)
