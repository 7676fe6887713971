"""A LoRA adapter as PEFT saves it, read and laid out as the inputs of a graph.

Beside the weight W of a module an adapter has A [r, in] and B [out, r]: the module gives x·Wᵀ + scale · x·Aᵀ·Bᵀ (Hu et al., 2021,
"LoRA: Low-Rank Adaptation of Large Language Models"). The scale is lora_alpha / r, or lora_alpha / √r (rank-stabilized).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .errors import CheckpointError, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .manifest import Manifest, Projection

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# What an adapter may be beyond two matrices a module, by the field of its configuration, and what it is then called.
_BEYOND = {
    "use_dora": "DoRA",
    "modules_to_save": "modules that were trained as a whole",
    "lora_bias": "biases of its own",
    "trainable_token_indices": "token embeddings of its own",
    "target_parameters": "parameters that are no module's weight",
    "layer_replication": "layers that are used several times",
    "alora_invocation_tokens": "tokens that switch it on",
    "use_qalora": "pooled inputs",
    "use_bdlora": "block-diagonal matrices",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}
_BASE_UNCHANGED = (
    True,
    False,
    "gaussian",
    "eva",
    "orthogonal",
)  # ways to begin that leave the checkpoint's weights


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a module: x · down · up, float32 [in, r] and [r, out], the scale in `up`."""

    down: torch.Tensor
    up: torch.Tensor


def read(folder: Path) -> dict[str, LowRank]:
    """Module → what the adapter in a folder adds to it.

    Raises:
        CheckpointError: the folder has no adapter of PEFT's, or a damaged one.
        UnsupportedModel: it is more than two matrices a module.
    """
    config = _config(folder / CONFIG)
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, values in _tensors(folder / WEIGHTS).items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise UnsupportedModel(f"{folder} has {name}, which is not a matrix of LoRA beside a projection")
        sides.setdefault(match["module"], {})[match["side"]] = values.float()
    if not sides:
        raise CheckpointError(f"{folder / WEIGHTS} has no tensors")
    return {module: _low_rank(folder, module, matrices, config) for module, matrices in sides.items()}


def inputs(adapter: Mapping[str, LowRank], manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Name of an input of the graph → what the adapter gives for it; products that it adds nothing to are left out.

    Raises:
        UnsupportedModel: the graph has no place for what the adapter has.
    """
    if not manifest.lora:
        raise UnsupportedModel(f"the graph of {manifest.name} takes no adapters; export it again with --lora")
    places = {module for projection in manifest.lora for module in projection.modules}
    unknown = sorted(adapter.keys() - places)
    if unknown:
        kinds = sorted({place.rsplit(".", 1)[-1] for place in places})
        raise UnsupportedModel(
            f"the graph of {manifest.name} has no place for an adapter of {_named(unknown)}; it has some for {', '.join(kinds)} "
            f"of {len(places)} modules, such as {min(places)}"
        )
    dtypes = {tensor.name: tensor.dtype for tensor in manifest.optional_inputs}
    sizes = {tensor.name: tensor.shape for tensor in manifest.optional_inputs}
    found: dict[str, NDArray[Any]] = {}
    for projection in manifest.lora:
        pieces = {module: adapter[module] for module in projection.modules if module in adapter}
        if pieces:
            _check_sizes(pieces, projection, int(sizes[projection.down][0]))
            down, up = _packed(pieces, projection)
            found[projection.down] = down.astype(dtypes[projection.down])
            found[projection.up] = up.astype(dtypes[projection.up])
    return found


def stretches(order: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """[first, end) of each run of consecutive numbers."""
    if not order:
        return ()
    numbers = np.asarray(order)
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    firsts, lasts = numbers[[0, *breaks]], numbers[[*(breaks - 1), -1]]
    return tuple((int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True))


def _packed(
    pieces: Mapping[str, LowRank], projection: Projection
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The matrices of a product that has several modules side by side: `down` side by side, `up` block-diagonal."""
    down = torch.cat([piece.down for piece in pieces.values()], 1)
    ups = [
        pieces[module].up if module in pieces else torch.zeros(0, features)
        for module, features in projection.modules.items()
    ]
    up = torch.block_diag(*ups)
    if projection.order:
        up = up[:, np.concatenate([np.arange(*stretch) for stretch in projection.order])]
    return down.contiguous().numpy(), up.contiguous().numpy()


def _check_sizes(pieces: Mapping[str, LowRank], projection: Projection, features: int) -> None:
    for module, piece in pieces.items():
        found = piece.down.shape[0], piece.up.shape[1]
        if found != (features, projection.modules[module]):
            raise UnsupportedModel(
                f"the adapter takes {found[0]} features to {found[1]} in {module}, the model {features} to "
                f"{projection.modules[module]}: it was made for another checkpoint"
            )


def _low_rank(
    folder: Path, module: str, matrices: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> LowRank:
    if matrices.keys() != {"A", "B"} or matrices["A"].shape[0] != matrices["B"].shape[1]:
        shapes = " and ".join(f"{side} {list(matrix.shape)}" for side, matrix in sorted(matrices.items()))
        raise CheckpointError(
            f"{folder / WEIGHTS} is damaged: {module} has {shapes}; A [r, in] and B [out, r] are needed"
        )
    a, b = matrices["A"], matrices["B"]
    rank = _of(config.get("rank_pattern"), module, config["r"])
    if a.shape[0] != rank:
        raise CheckpointError(f"{folder}: {module} has rank {a.shape[0]}, and {rank} by {CONFIG}")
    alpha = _of(config.get("alpha_pattern"), module, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(a.T, b.T * scale)


def _of(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that a module's path ends with, as PEFT matches them."""
    return next(
        (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
        kind, beginning, _, _ = (
            config["peft_type"],
            config.get("init_lora_weights", True),
            config["r"],
            config["lora_alpha"],
        )
    except OSError as error:
        raise CheckpointError(
            f"{path.parent} is not a LoRA adapter: {path.name} cannot be read ({error.strerror})"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if kind != "LORA":
        raise UnsupportedModel(f"{path.parent} is an adapter of the kind {kind}; LORA is what a graph takes")
    for field, what in _BEYOND.items():
        if config.get(field):
            raise UnsupportedModel(
                f"the adapter in {path.parent} has {what} ({field}), which a graph has no place for"
            )
    if config.get("bias", "none") != "none":
        raise UnsupportedModel(
            f"the adapter in {path.parent} has biases of the checkpoint, trained along (bias {config['bias']!r}), "
            "which a graph has no place for"
        )
    if beginning not in _BASE_UNCHANGED:
        raise UnsupportedModel(
            f"the adapter in {path.parent} began as {beginning!r}, which changes the checkpoint's own weights; save it from PEFT "
            "with path_initial_model_for_weight_conversion"
        )
    return config


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def _named(modules: Sequence[str]) -> str:
    return ", ".join(modules[:3]) + (f" and {len(modules) - 3} others" if len(modules) > 3 else "")
