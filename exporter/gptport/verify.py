"""Parity with the checkpoint in torch: the written graph, run by onnxruntime as a server runs it, must give its logits.

Compared are rows of text at every position, a prefill in two chunks, a ragged right-padded batch of prefills, and decode steps of
that batch, all with past and present in the same memory, against an uncached forward pass in torch float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from . import parts
from .errors import VerificationError
from .reference import WATCHED_ROW, WATCHED_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .manifest import Manifest
    from .precision import Precision
    from .reference import Reference

    Logits = NDArray[np.float32]

_PREFILL = (3, 5, 2, 1)  # tokens of each row of the ragged batch
_DECODE_STEPS = 2  # the second reads what the first wrote

EXPORT_ADVICE = ". Nothing was written; try another --quantization or --block-size, or allow more with --max-perplexity-increase"


@dataclass(frozen=True)
class LayerDifference:
    """How far the hidden states after a layer are from the checkpoint's: ‖difference‖₂ / ‖checkpoint's‖₂ of a position.

    Attributes:
        layer: its number, from 0.
        positions: that were compared.
        median: over the positions of the prefill in two chunks.
        largest: of them.
    """

    layer: int
    positions: int
    median: float
    largest: float


@dataclass(frozen=True)
class Parity:
    """How close the graph is.

    Attributes:
        tokens: positions that were compared.
        max_abs_logit_difference: the largest difference of a logit.
        max_abs_logit: the largest logit of the checkpoint, for scale.
        greedy_agreement: share of positions whose likeliest token is the same.
        text_tokens: tokens of the evaluation text.
        row_tokens: of a row of it.
        text_greedy_agreement: share of its positions whose likeliest next token is the same.
        checkpoint_perplexity: of the text, by the checkpoint.
        perplexity: of the text, by the graph.
        differences: the largest difference of a logit at each position of the text.
        layers: the layers whose hidden states were compared too.
        parts: in how many parts the graph was run, one after the other; 1 if it was run as it is.
    """

    tokens: int
    max_abs_logit_difference: float
    max_abs_logit: float
    greedy_agreement: float
    text_tokens: int
    row_tokens: int
    text_greedy_agreement: float
    checkpoint_perplexity: float
    perplexity: float
    differences: tuple[float, ...]
    layers: tuple[LayerDifference, ...]
    parts: int

    @property
    def perplexity_increase(self) -> float:
        """Relative to the checkpoint's."""
        return self.perplexity / self.checkpoint_perplexity - 1


@dataclass(frozen=True)
class Compared:
    """Logits [positions, vocab] of the graph and of the checkpoint, and what gave them."""

    what: str
    got: Logits
    expected: Logits

    @cached_property
    def differences(self) -> NDArray[np.float32]:
        """The largest of each position."""
        found: NDArray[np.float32] = np.array(
            [np.abs(a - b).max() for a, b in zip(self.got, self.expected, strict=True)]
        )
        return found

    @cached_property
    def agreements(self) -> NDArray[np.bool_]:
        """Whether the likeliest token is the same, for each position."""
        found: NDArray[np.bool_] = self.got.argmax(1) == self.expected.argmax(1)
        return found


def verify(
    folder: Path,
    manifest: Manifest,
    expected: Reference,
    precision: Precision,
    hidden_states: Sequence[str] = (),
    optional: Mapping[str, NDArray[np.generic]] = MappingProxyType({}),
    *,
    advice: str = EXPORT_ADVICE,
) -> Parity:
    """Compare the graph in `folder`, given these of its optional inputs, with the checkpoint.

    `hidden_states` names the values of the graph that are compared with those of the reference, layer by layer. `advice` is the
    end of an error's message.

    Raises:
        VerificationError: a logit differs by more than the precision allows, or is not a number; or the perplexity of the text
            rises by more than it allows.
    """
    if not np.isfinite(expected.logits).all():
        raise VerificationError(
            "in torch, the checkpoint itself gives logits that are not numbers; there may be some among its weights"
        )
    runs = _Runs(manifest, expected, optional)
    count = parts.run(folder, manifest, runs.calls, hidden_states)
    compared = list(runs.compared())
    for each in compared:
        if not np.isfinite(each.got).all():
            culprit = parts.first_overflow(folder, manifest, runs.calls[0])
            raise VerificationError(
                f"the {precision.name} graph gives logits that are not numbers ({each.what}); the first such values come from "
                f"{culprit}: the range of {precision.name} is too small for this model; use another --precision"
            )
    layers = tuple(
        _layer_difference(i, runs.seen(name), expected.hidden_states[i])
        for i, name in enumerate(hidden_states)
    )
    return judged(compared, expected, precision, layers, count, advice=advice)


def judged(
    compared: Sequence[Compared],
    expected: Reference,
    precision: Precision,
    layers: tuple[LayerDifference, ...] = (),
    count: int = 1,
    *,
    advice: str,
) -> Parity:
    """How close logits are; the first ones are those of every position of the text. The graph was run in `count` parts.

    Raises:
        VerificationError: not as close as the precision allows.
    """
    parity = _parity(compared, expected, layers, count)
    worst = max(compared, key=lambda each: float(each.differences.max()))
    _check(parity, worst.what, precision, advice)
    return parity


def _check(parity: Parity, worst: str, precision: Precision, advice: str) -> None:
    allowed = precision.tolerance * parity.max_abs_logit
    if parity.max_abs_logit_difference > allowed:
        raise VerificationError(
            f"the graph differs from the original by {parity.max_abs_logit_difference:.3g} ({worst}); "
            f"{precision.name} allows {allowed:.3g} for logits as large as {parity.max_abs_logit:.3g}{advice.partition(';')[0]}"
        )
    if not parity.perplexity_increase <= precision.max_perplexity_increase:
        raise VerificationError(
            f"the perplexity of the evaluation text rises by {parity.perplexity_increase:.1%}, from "
            f"{parity.checkpoint_perplexity:.4g} to {parity.perplexity:.4g}; {precision.name} allows "
            f"{precision.max_perplexity_increase:.1%}{advice}"
        )


def _layer_difference(layer: int, got: NDArray[np.float32], expected: NDArray[np.float32]) -> LayerDifference:
    """Both [tokens, features]."""
    norms = np.linalg.norm(expected, axis=1)
    found = np.linalg.norm(got - expected, axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    return LayerDifference(layer, len(found), float(np.median(found)), float(found.max()))


def _parity(
    compared: Sequence[Compared], expected: Reference, layers: tuple[LayerDifference, ...], count: int
) -> Parity:
    agreements = np.concatenate([each.agreements for each in compared])
    text = compared[0]
    return Parity(
        tokens=len(agreements),
        max_abs_logit_difference=float(max(each.differences.max() for each in compared)),
        max_abs_logit=float(max(max(each.expected.max(), -each.expected.min()) for each in compared)),
        greedy_agreement=float(agreements.mean()),
        text_tokens=expected.ids.size,
        row_tokens=expected.ids.shape[1],
        text_greedy_agreement=float(text.agreements.mean()),
        checkpoint_perplexity=_perplexity(text.expected, expected.ids),
        perplexity=_perplexity(text.got, expected.ids),
        differences=tuple(map(float, text.differences)),
        layers=layers,
        parts=count,
    )


def _perplexity(logits: Logits, ids: NDArray[np.int64]) -> float:
    """exp of the mean negative log-likelihood of each token after the first of its row; logits [rows · tokens, vocab]."""
    scores = torch.from_numpy(logits).unflatten(0, ids.shape)[:, :-1].flatten(0, 1)
    return float(functional.cross_entropy(scores, torch.from_numpy(ids[:, 1:]).flatten()).double().exp())


class _Runs:
    """The calls that are compared."""

    def __init__(
        self, manifest: Manifest, expected: Reference, optional: Mapping[str, NDArray[np.generic]]
    ) -> None:
        self._manifest = manifest
        self._optional = optional
        self._expected = expected
        rows, width = expected.ids.shape
        self._prefill = [min(n, width) for n in _PREFILL]
        self._steps = min(_DECODE_STEPS, width - max(self._prefill))
        chunked = expected.ids[WATCHED_ROW][:WATCHED_TOKENS]
        self._chunked, middle = len(chunked), len(chunked) // 2
        self.calls = [
            self._call("text", list(expected.ids), [0] * rows, np.arange(width)[::-1]),
            replace(self._call("chunks", [chunked[:middle]], [0]), watched=True),
            replace(self._call("chunks", [chunked[middle:]], [middle]), watched=True),
            self._batch([0] * rows, self._prefill),
        ]
        for step in range(self._steps):
            at = [n + step for n in self._prefill]
            self.calls.append(self._batch(at, [n + 1 for n in at]))

    def compared(self) -> Iterator[Compared]:
        """The logits of the calls, after they were run, beside the checkpoint's; those of the text first."""
        text, first, second, *batch = (
            call.values[self._manifest.roles["logits"]].numpy() for call in self.calls
        )
        expected, middle = self._expected.logits, self._chunked // 2
        yield Compared("prefill of a text", text, expected.reshape(text.shape))
        yield Compared("first chunk of a prefill", first, expected[WATCHED_ROW, middle - 1 : middle])
        yield Compared("second chunk of a prefill", second, expected[WATCHED_ROW, self._chunked - 1, None])
        for step, got in enumerate(batch):
            what = f"decode step {step}" if step else "batched prefill"
            yield Compared(
                what,
                got,
                np.stack([row[n - 1 + step] for row, n in zip(expected, self._prefill, strict=True)]),
            )

    def seen(self, name: str) -> NDArray[np.float32]:
        """What a value that was watched was at each position of the prefill in chunks, [tokens, features]."""
        return np.concatenate([call.seen[name][0] for call in self.calls if call.watched])

    def _batch(self, starts: list[int], ends: list[int]) -> parts.Call:
        rows = [row[a:b] for row, a, b in zip(self._expected.ids, starts, ends, strict=True)]
        return self._call("batch", rows, starts)

    def _call(
        self,
        cache: str,
        rows: list[NDArray[np.int64]],
        starts: list[int],
        offsets: NDArray[np.int64] | None = None,
    ) -> parts.Call:
        """A call on right-padded rows."""
        width = max(len(row) for row in rows)
        last = [start + len(row) - 1 for start, row in zip(starts, rows, strict=True)]
        inputs = {
            "input_ids": np.stack([np.pad(row, (0, width - len(row))) for row in rows]),
            "position_ids": np.array(starts, np.int64)[:, None] + np.arange(width),
            "seqlens_k": np.array(last, np.int32),
            "logits_offsets": np.zeros(1, np.int64) if offsets is None else offsets,
        }
        named = {self._manifest.roles[role]: np.ascontiguousarray(value) for role, value in inputs.items()}
        return parts.Call(cache, len(rows), self._expected.ids.shape[1], {**named, **self._optional})
