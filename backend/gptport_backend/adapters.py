"""The LoRA adapters of a version, `adapters/NAME/`: each is read when a request first names it, and stays."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from gptport_backend.errors import RequestError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gptport_backend.manifest import Manifest

FOLDER = "adapters"
WEIGHTS = "adapter.onnx_adapter"
DESCRIPTION = "adapter.json"


@dataclass(frozen=True, eq=False)
class Adapter:
    """Name of an input of the graph → what the adapter gives for it: `down` [in, rank], `up` [rank, out]."""

    name: str
    matrices: dict[str, NDArray[Any]]


class Adapters:
    """Finds the adapters that requests name. May be used from any thread."""

    def __init__(self, manifest: Manifest, version_dir: Path) -> None:
        self._manifest = manifest
        self._folder = version_dir / FOLDER
        self._read: dict[str, Adapter] = {}

    def find(self, name: str | None) -> Adapter | None:
        """The adapter of that name, None for none; RequestError if there is no such adapter, or a damaged one."""
        if name is None:
            return None
        if name not in self._read:
            there = self.names()
            if name not in there:
                raise RequestError(f"lora_name is {name[:80]!r}; {self._choice(there)}")
            self._read.setdefault(name, self._load(name))
        return self._read[name]

    def names(self) -> list[str]:
        """Those that there are now, in order."""
        if not self._manifest.lora:
            return []
        return sorted(path.parent.name for path in self._folder.glob(f"[!.]*/{DESCRIPTION}"))

    def _choice(self, there: list[str]) -> str:
        model = self._manifest.name
        if not self._manifest.lora:
            return f"{model} takes no adapters: it was exported without --lora"
        return f"{model} has the adapters {', '.join(there)}" if there else f"{model} has no adapters yet"

    def _load(self, name: str) -> Adapter:
        folder = self._folder / name
        try:
            described = json.loads((folder / DESCRIPTION).read_bytes())
            content = (folder / WEIGHTS).read_bytes()
            whole = hashlib.sha256(content).hexdigest() == described["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"lora_name is {name!r}, and {folder} cannot be read: {error}") from error
        if not whole:
            raise RequestError(f"lora_name is {name!r}, and {folder / WEIGHTS} is damaged; export it again")
        read = onnxruntime.AdapterFormat.read_adapter(str(folder / WEIGHTS)).get_parameters()
        # Copies: the values are views of the file, which goes with them.
        matrices = {each: np.array(value.numpy()) for each, value in read.items()}
        if not self._fits(matrices):
            raise RequestError(f"lora_name is {name!r}, which was made for another version; export it again")
        return Adapter(name, matrices)

    def _fits(self, matrices: dict[str, NDArray[Any]]) -> bool:
        known = 0
        for projection in self._manifest.lora:
            down, up = matrices.get(projection.down), matrices.get(projection.up)
            if down is None or up is None:
                continue
            known += 2
            wanted = self._manifest.tensors[projection.down], self._manifest.tensors[projection.up]
            sizes = wanted[0].shape[0], down.shape[1], wanted[1].shape[1]
            if (*down.shape, *up.shape) != (sizes[0], sizes[1], sizes[1], sizes[2]):
                return False
            if {down.dtype.name, up.dtype.name} != {wanted[0].dtype}:
                return False
        return known == len(matrices)
