"""Parity with the checkpoint in torch: the written graph, run by onnxruntime as a server runs it, must give its logits.

Compared are a prefill alone, a ragged right-padded batch of prefills, a prefill in two chunks, and decode steps of that batch,
all with past and present in the same memory, against one uncached forward pass of each row in torch float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import torch
from tokenizers import Tokenizer

from .errors import VerificationError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from .checkpoint import Checkpoint
    from .manifest import Manifest
    from .precision import Precision

_TEXT = (
    "The history of the lighthouse begins with open fires on hilltops. A keeper would climb the stairs at dusk, trim the wick, "
    "and wind the clockwork that turned the lens; at 4:30 he wrote down the weather. “Ships,” he said, “don't wait – they pass.” "
    "In 1858 the first electric arc lamp was tried, and def light(hours): return hours * 60 would have told him the minutes."
)
_PREFILL_LENGTHS = (3, 21, 12, 1)
_DECODE_STEPS = 8


@dataclass(frozen=True)
class Reference:
    """What the checkpoint says.

    Attributes:
        rows: token ids of each row, prefill and decode together.
        logits: float32 [tokens of the row, vocab] of each row.
    """

    rows: tuple[NDArray[np.int64], ...]
    logits: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Parity:
    """How close the graph is.

    Attributes:
        tokens: positions that were compared.
        max_abs_logit_difference: the largest difference of a logit.
        max_abs_logit: the largest logit of the checkpoint, for scale.
        greedy_agreement: share of positions whose likeliest token is the same.
    """

    tokens: int
    max_abs_logit_difference: float
    max_abs_logit: float
    greedy_agreement: float


def reference(checkpoint: Checkpoint, tokenizer_json: bytes, max_length: int) -> Reference:
    """Run the checkpoint in torch on a text, uncached."""
    lengths = [min(n + _DECODE_STEPS, max_length) for n in _PREFILL_LENGTHS]
    ids = Tokenizer.from_str(tokenizer_json.decode()).encode(_TEXT, add_special_tokens=False).ids
    ids = [i for i in ids if i < checkpoint.spec.vocab_size] or [0]
    starts = np.cumsum([0, *lengths[:-1]])
    rows = tuple(
        np.resize(np.roll(np.array(ids, np.int64), -start), n)
        for start, n in zip(starts, lengths, strict=True)
    )
    model = checkpoint.reference()
    with torch.no_grad():
        # One padded batch: what stands behind a row does not change it, every token looks back only.
        padded = torch.from_numpy(np.stack([np.pad(row, (0, max(lengths) - len(row))) for row in rows]))
        together = model(padded, use_cache=False).logits.float().numpy()
    logits = tuple(together[i, : len(row)] for i, row in enumerate(rows))
    return Reference(rows, logits)


def verify(folder: Path, manifest: Manifest, expected: Reference, precision: Precision) -> Parity:
    """Compare the graph in `folder` with the checkpoint.

    Raises:
        VerificationError: a logit differs by more than the precision allows, or is not a number.
    """
    pairs = _Runs(folder, manifest, expected).pairs()
    for what, got, _ in pairs:
        if not np.isfinite(got).all():
            raise VerificationError(
                f"the {precision.name} graph gives logits that are not numbers ({what}): the range is too small for this model"
            )
    worst, difference = max(
        ((what, float(np.abs(a - b).max())) for what, a, b in pairs), key=lambda pair: pair[1]
    )
    largest = max(float(np.abs(b).max()) for _, _, b in pairs)
    if difference > precision.tolerance * largest:
        raise VerificationError(
            f"the graph differs from the checkpoint by {difference:.3g} ({worst}); {precision.name} allows "
            f"{precision.tolerance * largest:.3g} for logits as large as {largest:.3g}. Nothing was written"
        )
    agreement = sum(int(a.argmax() == b.argmax()) for _, a, b in pairs) / len(pairs)
    return Parity(len(pairs), difference, largest, agreement)


class _Runs:
    """The graph, run on the rows of a reference."""

    def __init__(self, folder: Path, manifest: Manifest, expected: Reference) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # The weights stay mapped from the file instead of being copied into a packed layout: half the memory, same numbers.
        options.add_session_config_entry("session.disable_prepacking", "1")
        self.session = onnxruntime.InferenceSession(
            folder / manifest.graph, options, providers=["CPUExecutionProvider"]
        )
        self.manifest = manifest
        self.expected = expected
        self.prefill = [min(n, len(row)) for n, row in zip(_PREFILL_LENGTHS, expected.rows, strict=True)]

    def pairs(self) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
        """(what was run, the graph's logits, the checkpoint's) for each position compared."""
        return [*self._alone(), *self._chunked(), *self._batched()]

    def _alone(self) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
        row, logits = self.expected.rows[1], self.expected.logits[1]
        return [("prefill", self._call(self._cache(1), [row], [0])[0], logits[-1])]

    def _chunked(self) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
        row, logits, middle = self.expected.rows[1], self.expected.logits[1], len(self.expected.rows[1]) // 2
        cache = self._cache(1)
        first = self._call(cache, [row[:middle]], [0])[0]
        second = self._call(cache, [row[middle:]], [middle])[0]
        return [
            ("first chunk of a prefill", first, logits[middle - 1]),
            ("second chunk of a prefill", second, logits[-1]),
        ]

    def _batched(self) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
        rows, expected, lengths = self.expected.rows, self.expected.logits, self.prefill
        cache = self._cache(len(rows))
        got = self._call(cache, [row[:n] for row, n in zip(rows, lengths, strict=True)], [0] * len(rows))
        pairs = [("batched prefill", got[i], expected[i][n - 1]) for i, n in enumerate(lengths)]
        for step in range(min(len(row) - n for row, n in zip(rows, lengths, strict=True))):
            at = [n + step for n in lengths]
            got = self._call(cache, [row[n : n + 1] for row, n in zip(rows, at, strict=True)], at)
            pairs += [(f"decode step {step + 1}", got[i], expected[i][n]) for i, n in enumerate(at)]
        return pairs

    def _cache(self, batch: int) -> list[NDArray[np.generic]]:
        cache = self.manifest.kv_cache
        length = max(len(row) for row in self.expected.rows)
        return [np.zeros((batch, cache.kv_heads, length, cache.head_dim), cache.dtype) for _ in cache.tensors]

    def _call(
        self, cache: list[NDArray[np.generic]], rows: list[NDArray[np.int64]], starts: list[int]
    ) -> NDArray[np.float32]:
        """One run on right-padded rows, past and present in the same memory; float32 [rows, vocab]."""
        width = max(len(row) for row in rows)
        roles, binding = self.manifest.roles, self.session.io_binding()
        inputs = {
            "input_ids": np.stack([np.pad(row, (0, width - len(row))) for row in rows]),
            "position_ids": np.array(starts, np.int64)[:, None] + np.arange(width),
            "seqlens_k": np.array(
                [start + len(row) - 1 for start, row in zip(starts, rows, strict=True)], np.int32
            ),
        }
        for role, values in inputs.items():
            binding.bind_cpu_input(roles[role], np.ascontiguousarray(values))
        for tensor, values in zip(self.manifest.kv_cache.tensors, cache, strict=True):
            memory = ("cpu", 0, values.dtype, values.shape, values.ctypes.data)
            binding.bind_input(tensor.past, *memory)
            binding.bind_output(tensor.present, *memory)
        binding.bind_output(roles["logits"])
        self.session.run_with_iobinding(binding)
        logits: NDArray[np.float32] = binding.get_outputs()[-1].numpy()
        return logits
