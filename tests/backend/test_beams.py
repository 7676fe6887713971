"""Beam search beside other streams gives what the client's own loop gives, whatever happens to its rows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

import tiny_gpt
from conftest import PATIENCE, hold
from gptport_backend.errors import RequestError
from gptport_backend.logits import HostLogits
from gptport_backend.parameters import PARAMETERS
from gptport_client._beam_search import BeamOptions, BeamSearch
from test_engine import slots_in_use, wait_until

PROMPT = "the quick brown fox"
ENDS = list(range(0, 256, 5))  # so that hypotheses do end


class ByHand(BeamSearch):
    """The client's search, each hypothesis computed in whole and without a cache."""

    def __init__(self, served, version_dir, prompt, options, eos):
        self._session = onnxruntime.InferenceSession(str(version_dir / served.manifest.graph))
        self._tensors = served.manifest.cache.tensors
        self._model = SimpleNamespace(eos_token_ids=eos)
        self._prompt = tuple(served.tokenizer.encode(prompt).ids)
        self._options = options
        self._limit = min(options.max_tokens, tiny_gpt.MAX_LENGTH - len(self._prompt))
        self._sequences = []

    def _assigned(self, live):
        return [(hypothesis, None) for hypothesis in live]

    def _logits(self, hypothesis, _):
        ids = (*self._prompt, *hypothesis.token_ids)
        empty = np.zeros((1, tiny_gpt.KV_HEADS, len(ids), tiny_gpt.HEAD_DIM), np.float32)
        feed = {tensor.past: empty for tensor in self._tensors}
        feed["input_ids"] = np.array([ids], np.int64)
        feed["position_ids"] = np.arange(len(ids), dtype=np.int64)[np.newaxis]
        feed["seqlens_k"] = np.array([len(ids) - 1], np.int32)
        return self._session.run(["logits"], feed)[0][0]
        yield


@pytest.fixture
def by_hand(version_dir):
    def search(served, prompt, beams, max_tokens, length_penalty=1.0, eos=()):
        options = BeamOptions(beams, max_tokens, length_penalty)
        flow = ByHand(served, version_dir, prompt, options, {tiny_gpt.EOS, *eos}).run()
        with pytest.raises(StopIteration) as ended:
            next(flow)
        return [(list(each.token_ids), each.logprob) for each in ended.value.value]

    return search


def found(answer, count):
    """The answers' tokens and log-probabilities."""
    assert answer.wait().error == ""
    pieces = sorted(answer.pieces, key=lambda piece: piece.index)
    assert [piece.index for piece in pieces] == list(range(count))
    return [(list(piece.token_ids), piece.logprob) for piece in pieces]


def assert_same(some, others):
    assert [ids for ids, _ in some] == [ids for ids, _ in others]
    assert [logprob for _, logprob in some] == pytest.approx([logprob for _, logprob in others], abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ends", [[], ENDS], ids=["to the limit", "ending"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 5])
def test_it_finds_what_the_clients_loop_finds(serve, by_hand, beams, length_penalty, ends, stream) -> None:
    served = serve(max_batch_size=8)
    asked = {"beam_width": beams, "n": beams, "length_penalty": length_penalty, "max_tokens": 12}
    if ends:
        asked["stop_token_ids"] = ends
    answer = served.ask(text_input=PROMPT, stream=stream, **asked)
    assert_same(found(answer, beams), by_hand(served, PROMPT, beams, 12, length_penalty, ends))
    assert answer.responses == (beams if stream else 1)
    for piece in answer.pieces:
        ended = piece.token_ids[-1] in {tiny_gpt.EOS, *ends}
        assert piece.finish_reason == ("stop" if ended else "length")
        assert piece.text == served.tokenizer.decode(piece.token_ids[:-1] if ended else piece.token_ids)
    wait_until(lambda: slots_in_use(served) == 0)
    tally = served.engine._tally
    assert (tally.requests.total(), tally.answers.total()) == (1, beams)


def test_where_almost_all_tokens_end_the_text_as_many_live_on(serve, by_hand) -> None:
    served = serve(max_batch_size=8)
    ends = [token for token in range(256) if token % 8]
    asked = {"beam_width": 6, "n": 6, "length_penalty": 4.0, "stop_token_ids": ends, "max_tokens": 30}
    expected = by_hand(served, PROMPT, 6, 30, 4.0, ends)
    assert_same(found(served.ask(text_input=PROMPT, **asked), len(expected)), expected)


def test_searches_and_streams_side_by_side_get_what_they_get_alone(serve, by_hand, continuation) -> None:
    served = serve(max_batch_size=7, max_prefill_tokens=48)
    prompts = [PROMPT, "zzz", "hello " * 40, "b", "x" * 200]
    searches, streams = [], []
    for prompt in prompts:
        streams.append(served.ask(text_input=prompt, max_tokens=30, stream=True))
        searches.append(served.ask(text_input=prompt, max_tokens=10, beam_width=3, n=2))
    for prompt, search, stream in zip(prompts, searches, streams, strict=True):
        assert_same(found(search, 2), by_hand(served, prompt, 3, 10)[:2])
        assert stream.wait().token_ids == continuation(prompt, 30)
    wait_until(lambda: slots_in_use(served) == 0)


def test_put_back_as_a_whole_it_begins_anew_and_finds_the_same(serve) -> None:
    alone = serve()
    cache = alone.manifest.cache
    row = alone.manifest.max_length * cache.token_bytes
    narrow = serve(kv_cache_bytes=4 * row)
    first = {"text_input": "one", "max_tokens": 400, "ignore_eos": True}
    search = {"text_input": PROMPT, "beam_width": 3, "n": 3, "max_tokens": 260, "ignore_eos": True}
    answers = narrow.ask(**first), narrow.ask(**search), narrow.ask(**search)
    expected = alone.ask(**search)
    assert answers[0].wait().token_ids == alone.ask(**first).wait().token_ids
    for answer in answers[1:]:
        assert_same(found(answer, 3), found(expected, 3))
    assert narrow.engine._tally.preemptions > 0
    wait_until(lambda: slots_in_use(narrow) == 0)


@pytest.mark.parametrize("reason", ["cancelled", "timeout"])
def test_ended_early_it_gives_the_best_so_far_and_its_rows(serve, clock, reason) -> None:
    served = serve(max_batch_size=4)
    go_on = hold(served, "decode")
    asked = {"text_input": PROMPT, "beam_width": 4, "n": 2, "max_tokens": 500, "ignore_eos": True}
    answer = served.ask(timeout=1.0, **asked)
    wait_until(lambda: slots_in_use(served) == 4)
    if reason == "timeout":
        clock.now = 1.0
    else:
        answer.cancelled = True
    go_on.set()
    assert {piece.finish_reason for piece in answer.wait().pieces} == {reason}
    assert len(answer.pieces[0].token_ids) < 500
    wait_until(lambda: slots_in_use(served) == 0)


def test_logits_that_are_no_numbers_fail_the_search_alone(serve) -> None:
    served = serve()
    decode = served.runner.decode
    nothing = np.full((3, served.manifest.vocab_size), np.nan, np.float32)
    served.runner.decode = lambda *given: decode(*given) and HostLogits(nothing)
    answer = served.ask(text_input=PROMPT, beam_width=3, max_tokens=5).wait()
    assert "not finite" in answer.error
    wait_until(lambda: slots_in_use(served) == 0)
    served.runner.decode = decode
    assert served.ask(text_input="hello", max_tokens=5).wait().error == ""


def test_what_a_search_leaves_behind_is_reused_and_changes_nothing(serve, by_hand, continuation) -> None:
    served = serve(max_batch_size=5)
    prompt = "a prompt that is long enough to be kept, "
    tally = served.engine._tally
    expected = by_hand(served, prompt, 4, 40)
    for _ in range(2):
        before = tally.reused_tokens
        assert_same(found(served.ask(text_input=prompt, max_tokens=40, beam_width=4, n=4), 4), expected)
    assert tally.reused_tokens - before == len(prompt) - 1
    for ids, _ in expected:
        before = tally.reused_tokens
        longer = served.tokenizer.decode(ids[:-1], skip_special_tokens=False)
        longer = prompt + longer if "�" not in longer else prompt
        answer = served.ask(text_input=longer, max_tokens=10).wait()
        assert answer.token_ids == continuation(longer, 10)
        assert tally.reused_tokens - before >= len(prompt) - 1
    computed = served.ask(text_input=prompt + "x", max_tokens=8, beam_width=3, n=3)
    assert_same(found(computed, 3), by_hand(served, prompt + "x", 3, 8))


@pytest.mark.parametrize("reason", ["cancelled", "timeout"])
def test_one_that_waits_ends_too_and_has_nothing(serve, clock, reason) -> None:
    served = serve(max_batch_size=3)
    go_on = hold(served, "decode")
    running = served.ask(text_input="a", max_tokens=50, ignore_eos=True)
    wait_until(lambda: slots_in_use(served) == 1)
    waiting = served.ask(text_input=PROMPT, beam_width=3, n=2, max_tokens=5, timeout=1.0)
    if reason == "timeout":
        clock.now = 1.0
    else:
        waiting.cancelled = True
    go_on.set()
    (piece,) = waiting.wait().pieces
    assert (piece.finish_reason, piece.token_ids, piece.text) == (reason, (), "")
    assert running.wait().finish_reason == "length"
    wait_until(lambda: slots_in_use(served) == 0)


def test_the_prompt_as_ids_in_chunks_and_shown(serve, by_hand) -> None:
    served = serve(max_batch_size=4, max_prefill_tokens=16)
    prompt = "word " * 30
    ids = served.tokenizer.encode(prompt).ids
    shown = {"exclude_input_in_output": False, "priority": -1, "seed": 5, "timeout": PATIENCE}
    answer = served.ask(input_ids=ids, max_tokens=9, beam_width=3, n=3, **shown)
    assert_same(found(answer, 3), by_hand(served, prompt, 3, 9))
    assert all(piece.text.startswith(prompt) for piece in answer.pieces)
    assert all(piece.num_input_tokens == len(ids) for piece in answer.pieces)


def test_it_ends_at_the_length_of_the_model(serve, by_hand) -> None:
    served = serve(max_batch_size=2)
    prompt = "w" * (tiny_gpt.MAX_LENGTH - 4)
    answer = served.ask(text_input=prompt, max_tokens=50, beam_width=2, n=2, ignore_eos=True)
    assert_same(found(answer, 2), by_hand(served, prompt, 2, 4))
    assert {len(piece.token_ids) for piece in answer.pieces} == {4}


NOT_ALLOWED = {
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.1,
    "typical_p": 0.5,
    "min_tokens": 2,
    "stop_words": ["a"],
    "bad_words": ["a"],
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias_ids": [3],
    "logit_bias_values": [1.0],
    "logprobs": 0,
    "prompt_logprobs": 0,
    "prompt_lookup": 4,
    "json_schema": "{}",
    "regex": "a+",
    "choice": ["a"],
    "grammar": 'start: "a"',
}
USED = {
    *(
        "text_input",
        "input_ids",
        "messages",
        "chat_template_kwargs",
        "lora_name",
        "max_tokens",
        "n",
        "beam_width",
    ),
    *(
        "length_penalty",
        "stop_token_ids",
        "ignore_eos",
        "timeout",
        "priority",
        "stream",
        "exclude_input_in_output",
    ),
    "seed",  # changes nothing, as in any greedy request
}


@pytest.mark.parametrize("field", NOT_ALLOWED)
def test_what_it_has_no_use_for_is_refused_by_name(serve, field) -> None:
    with pytest.raises(RequestError, match=f"{field} is .*; with a beam_width of 3 it must be left out"):
        serve().ask(text_input=PROMPT, beam_width=3, **{field: NOT_ALLOWED[field]})


def test_every_parameter_works_or_is_refused() -> None:
    assert {parameter.name for parameter in PARAMETERS} == NOT_ALLOWED.keys() | USED
    assert not NOT_ALLOWED.keys() & USED


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"n": 4}, "n is 4; it must be at most beam_width, which is 3"),
        ({"beam_width": 0}, "beam_width is 0; it must be from 1 to 64"),
        ({"beam_width": 5}, "beam_width is 5; max_batch_size of this model is 4"),
        ({"beam_width": 1, "length_penalty": 2.0}, "length_penalty is 2; it must be 1 unless"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(serve, inputs, message) -> None:
    with pytest.raises(RequestError, match=message):
        serve(max_batch_size=4).ask(**{"text_input": PROMPT, "beam_width": 3, **inputs})


def test_more_beams_than_memory_holds_are_refused(serve) -> None:
    cache = serve().manifest.cache
    row = tiny_gpt.MAX_LENGTH * cache.token_bytes
    with pytest.raises(RequestError, match="beam_width is 4; so many sequences of 519 tokens do not fit"):
        serve(kv_cache_bytes=row).ask(text_input=PROMPT, beam_width=4, max_tokens=500)
