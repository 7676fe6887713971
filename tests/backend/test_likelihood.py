"""How likely a prompt is: its tokens' log-probabilities, whatever else runs and however it is cut into chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

import tiny_gpt
from conftest import Served
from gptport.checkpoint import open_checkpoint
from gptport.console import Steps
from gptport.export import export
from gptport.precision import by_name
from gptport.samples import sample
from gptport_backend import manifest as manifests
from gptport_backend.engine import EngineOptions
from gptport_backend.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from conftest import Answer
    from gptport_backend.manifest import Manifest

LONG = "the quick brown fox jumps over the lazy dog; " * 6  # several chunks


@pytest.fixture(scope="module")
def expected(version_dir: Path) -> Callable[[str], np.ndarray[Any, Any]]:
    """The log-softmax of each position of a text, `[tokens, vocab]`: the whole text at once, without a cache."""
    manifest = manifests.read(version_dir)
    session = onnxruntime.InferenceSession(str(version_dir / manifest.graph))
    return lambda text: log_softmax(session, manifest, tiny_gpt.tokenizer().encode(text).ids)


def log_softmax(
    session: onnxruntime.InferenceSession, manifest: Manifest, ids: Sequence[int]
) -> np.ndarray[Any, Any]:
    """Of each position, `[tokens, vocab]`."""
    given = {
        "input_ids": np.array([ids]),
        "position_ids": np.arange(len(ids))[np.newaxis],
        "seqlens_k": np.array([len(ids) - 1]),
    }
    feed = {manifest.roles[role]: value.astype(manifest.tensor(role).dtype) for role, value in given.items()}
    cache = manifest.cache
    feed |= {
        each.past: np.zeros((1, each.heads, len(ids), each.head_dim), cache.dtype) for each in cache.tensors
    }
    feed[manifest.roles["logits_offsets"]] = np.arange(len(ids) - 1, -1, -1, dtype=np.int64)
    logits = session.run([manifest.roles["logits"]], feed)[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def check(answer: Answer, text: str, expected: np.ndarray[Any, Any], top: int) -> None:
    """The answer's score of `text` is right, and came once, first."""
    first, *others = answer.pieces
    assert first.prompt is not None
    assert all(piece.prompt is None for piece in others)
    ids = tiny_gpt.tokenizer().encode(text).ids
    assert first.prompt.token_ids == tuple(ids)
    assert len(first.prompt.logprobs) == len(ids) - 1
    for place, found in enumerate(first.prompt.logprobs):
        row = expected[place]
        assert found.token == pytest.approx(row[ids[place + 1]], abs=1e-4)
        assert found.top == pytest.approx(np.sort(row)[::-1][:top], abs=1e-4)
        assert row[list(found.top_ids)] == pytest.approx(found.top, abs=1e-4)


@pytest.mark.parametrize("text", ["a", "hello", LONG])
def test_a_prompt_is_scored_without_an_answer(
    serve: Callable[..., Served], expected: Callable[[str], Any], text: str
) -> None:
    answer = serve().ask(text_input=text, max_tokens=0, prompt_logprobs=3).wait()
    check(answer, text, expected(text), 3)
    (piece,) = answer.pieces
    assert (piece.token_ids, piece.text, piece.finish_reason) == ((), "", "length")
    assert (piece.num_input_tokens, piece.num_output_tokens) == (len(text), 0)


def test_a_prompt_is_scored_before_its_answer_whatever_else_runs(
    serve: Callable[..., Served], expected: Callable[[str], Any]
) -> None:
    served = serve(max_batch_size=3, max_prefill_tokens=48)
    inputs: dict[str, Any] = {"text_input": LONG, "max_tokens": 6, "temperature": 0.8, "seed": 4}
    alone = served.ask(**inputs, logprobs=1).wait()
    crowd = [served.ask(text_input="hello", max_tokens=80, stream=True) for _ in range(3)]
    answers = [served.ask(**inputs, prompt_logprobs=0, stream=stream).wait() for stream in (False, True)]
    for answer in answers:
        check(answer, LONG, expected(LONG), 0)
        assert answer.token_ids == alone.token_ids
    assert len({tuple(other.wait().token_ids) for other in crowd}) == 1


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version folder of a checkpoint in integers."""
    folder = tmp_path_factory.mktemp("quantized")
    source = open_checkpoint(str(sample("gpt2-tiny", folder / "gpt2", Steps())))
    exported = export(source, folder / "repository", "tiny", by_name(request.param), None, Steps())
    return exported.folders["tiny"]


@pytest.mark.parametrize("budget", [8, 40])
def test_a_quantized_graph_scores_a_prompt_in_steps_as_it_does_at_once(quantized: Path, budget: int) -> None:
    served = Served(quantized, EngineOptions(max_prefill_tokens=budget, max_batch_size=3))
    ids = served.vocabulary.encode(LONG)
    assert len(ids) > budget
    session = onnxruntime.InferenceSession(str(quantized / served.manifest.graph))
    logprobs = log_softmax(session, served.manifest, ids)
    crowd = [served.ask(text_input="hello", max_tokens=60, ignore_eos=True, stream=True) for _ in range(2)]
    for max_tokens in (0, 4):
        answer = served.ask(text_input=LONG, max_tokens=max_tokens, prompt_logprobs=3).wait()
        assert answer.error == ""
        scored = answer.pieces[0].prompt
        assert scored is not None
        assert scored.token_ids == ids
        expected = [logprobs[place, token] for place, token in enumerate(ids[1:])]
        assert [each.token for each in scored.logprobs] == pytest.approx(expected, abs=2e-3)
        for row, each in zip(logprobs, scored.logprobs, strict=False):
            assert each.top == pytest.approx(np.sort(row)[::-1][:3], abs=2e-3)
    assert [len(other.wait().token_ids) for other in crowd] == [60, 60]
    served.engine.close(0)


def test_a_prompt_that_is_kept_is_scored_anew(
    serve: Callable[..., Served], expected: Callable[[str], Any]
) -> None:
    served = serve()
    for _ in range(2):
        check(served.ask(text_input=LONG, prompt_logprobs=0, max_tokens=2).wait(), LONG, expected(LONG), 0)
    before = served.engine._tally.reused_tokens
    served.ask(text_input=LONG, max_tokens=2).wait()
    assert served.engine._tally.reused_tokens > before == 0


def test_a_prompt_may_be_as_long_as_the_model_if_nothing_is_to_follow(serve: Callable[..., Served]) -> None:
    served = serve()
    prompt = [5] * tiny_gpt.MAX_LENGTH
    answer = served.ask(input_ids=prompt, max_tokens=0, prompt_logprobs=0).wait()
    assert answer.pieces[0].prompt is not None
    assert len(answer.pieces[0].prompt.logprobs) == tiny_gpt.MAX_LENGTH - 1
    with pytest.raises(RequestError, match="the prompt has 600 tokens"):
        served.ask(input_ids=prompt, max_tokens=1, prompt_logprobs=0)


def test_never_many_logits_at_once(serve: Callable[..., Served]) -> None:
    served, rows = serve(), []
    extend = served.runner.extend

    def counted(*arguments: Any) -> Any:
        logits = extend(*arguments)
        rows.append(len(logits))
        return logits

    served.runner.extend = counted  # type: ignore[method-assign]
    served.ask(input_ids=[5] * 500, max_tokens=0, prompt_logprobs=20).wait()
    assert max(rows) <= 64 < sum(rows) == 500


def test_one_of_several_answers_has_the_score(
    serve: Callable[..., Served], expected: Callable[[str], Any]
) -> None:
    served = serve()
    answer = served.ask(text_input=LONG, max_tokens=3, n=2, seed=1, prompt_logprobs=1).wait()
    check(answer, LONG, expected(LONG), 1)
    assert served.engine._tally.input_tokens == len(LONG) + 1
    with pytest.raises(RequestError, match="n is 2; with max_tokens 0 it must be 1"):
        served.ask(text_input=LONG, max_tokens=0, n=2, prompt_logprobs=1)
