"""A graph whose cache grows: it is served as it is, and run here as a client runs it, its cache going from request to request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from .description import tensor
from .dialects import onnxruntime as dialect
from .errors import UnsupportedModel, VerificationError, first_line
from .manifest import KVCache, Manifest, Tokens, cache_tensors
from .reference import Reference
from .verify import Compared, Parity, judged

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .onnx_directory import OnnxDirectory
    from .precision import Precision

_SINGLE_TOKENS = 4  # of a row, behind its two chunks


def described(source: OnnxDirectory, name: str, precision: Precision, max_length: int) -> Manifest:
    """The manifest of the graph, without what is known only when it was written and run.

    Raises:
        UnsupportedModel: it cannot be served.
    """
    graph, spec = source.graph, source.spec
    logits = next(value for value in graph.model.graph.outputs if value.name == "logits")
    for value in (graph.cache[0].past, logits):
        if value.dtype is not None and value.dtype.name == "BFLOAT16":
            raise UnsupportedModel(
                f"{graph.path}: {value.name} is BFLOAT16, which onnxruntime does not run on the CPU; expected FLOAT or FLOAT16"
            )
    pasts = [tensor(pair.past) for pair in graph.cache]
    presents = [tensor(pair.present) for pair in graph.cache]
    others = [tensor(value) for value in graph.inputs.values()]
    tensors = cache_tensors(pasts, presents)
    return Manifest(
        name=name,
        precision=precision.name,
        dialect=dialect.NAME,
        opsets=dict(graph.model.opset_imports),
        ir_version=graph.model.ir_version,
        graph=graph.path.name,
        vocab_size=spec.vocab_size,
        max_length=max_length,
        logits="all",
        tokens=Tokens(spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id),
        inputs=(*others, *pasts),
        outputs=(tensor(logits), *presents),
        roles={each: each for each in (*graph.inputs, "logits")},
        kv_cache=KVCache(spec.layers, spec.kv_heads, spec.head_dim, pasts[0].dtype, tensors, grows=True),
        source={},
        verification={},
        tools={},
        files={},
    )


def reference(folder: Path, manifest: Manifest, ids: NDArray[np.int64]) -> Reference:
    """What the graph says of rows of ids, each at once, without a past."""
    width, session = ids.shape[1], _session(folder, manifest)
    logits = np.stack([_logits(session, manifest, row, [width]) for row in ids])
    return Reference(ids, logits, np.zeros((0, width, 0), np.float32))


def compare(
    folder: Path, manifest: Manifest, expected: Reference, precision: Precision, *, advice: str
) -> Parity:
    """Compare the graph, run on each row in two chunks and single tokens, with what is expected; see `verify.judged`.

    Raises:
        VerificationError: it is not as close as the precision allows, gives what are not numbers, or cannot be run so.
    """
    width = expected.ids.shape[1]
    singles = min(_SINGLE_TOKENS, width - 2)
    first = (width - singles + 1) // 2
    pieces = [first, width - singles - first, *[1] * singles]
    session = _session(folder, manifest)
    got = np.concatenate([_logits(session, manifest, row, [n for n in pieces if n]) for row in expected.ids])
    if not np.isfinite(got).all():
        raise VerificationError(
            f"{manifest.graph} gives logits that are not numbers; serve another precision"
        )
    what = "rows of text in two chunks and single tokens"
    compared = Compared(what, got, expected.logits.reshape(got.shape))
    return judged([compared], expected, precision, advice=advice)


def _session(folder: Path, manifest: Manifest) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # an arena keeps what the largest call took
    try:
        return onnxruntime.InferenceSession(folder / manifest.graph, options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base of their own
        raise VerificationError(
            f"onnxruntime {onnxruntime.__version__} cannot load {manifest.graph}: {first_line(error)}"
        ) from error


def _logits(
    session: onnxruntime.InferenceSession, manifest: Manifest, ids: NDArray[np.int64], pieces: Sequence[int]
) -> NDArray[np.float32]:
    """The logits [tokens, vocab] of a row that is appended in pieces of so many tokens."""
    cache = manifest.kv_cache
    heads, head_dim = manifest.cache_shapes[0]  # of all tensors: `foreign_graph` has looked
    empty = np.zeros((1, heads, 0, head_dim), cache.dtype)
    held = {each.past: empty for each in cache.tensors}
    found, past = [], 0
    for count in pieces:
        inputs = {
            "input_ids": ids[None, past : past + count],
            "position_ids": np.arange(past, past + count)[None],
            "attention_mask": np.ones((1, past + count), np.int64),
            "use_cache_branch": np.array([past > 0]),
            "num_logits_to_keep": np.array(0),
        }
        feeds = held | {name: inputs[role] for role, name in manifest.roles.items() if role in inputs}
        try:
            logits, *presents = session.run([each.name for each in manifest.outputs], feeds)
        except Exception as error:
            raise VerificationError(
                f"onnxruntime cannot run {manifest.graph} on {count} tokens behind {past}: {first_line(error)}"
            ) from error
        past += count
        for each, present in zip(cache.tensors, presents, strict=True):
            if present.shape != (1, heads, past, head_dim):
                raise VerificationError(
                    f"{manifest.graph} gives {each.present} {list(present.shape)} of {past} tokens; expected "
                    f"[1, {heads}, {past}, {head_dim}], the past with the new ones behind it"
                )
            held[each.past] = present
        found.append(np.asarray(logits[0], np.float32))
    return np.concatenate(found)
