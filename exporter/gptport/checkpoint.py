"""A Hugging Face checkpoint: a directory, a hub id, or a directory with a GGUF file. Tensors are read when asked for."""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from . import packed, positions, tokenizer_files
from .errors import CheckpointError, GptportError, UnsupportedModel, first_line
from .locate import Location, locate
from .naming import Naming, text_part
from .packed import Packed, Packing
from .spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PretrainedConfig

    from .precision import Quantization
    from .quantize import Blocks


@dataclass(frozen=True)
class Checkpoint(Location):
    """A checkpoint on disk.

    Attributes:
        trust_remote_code: whether Python code in the checkpoint may run.
    """

    trust_remote_code: bool = False

    @cached_property
    def config(self) -> PretrainedConfig:
        """transformers' configuration of the model, which decodes text."""
        return text_part(self.whole_config)

    @cached_property
    def whole_config(self) -> PretrainedConfig:
        """transformers' configuration of all that the checkpoint has; the same unless that is more than text."""
        gguf = {"gguf_file": self.files[0].name} if self.format == "gguf" else {}
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(
                self.directory, trust_remote_code=self.trust_remote_code, **gguf
            )
        except Exception as error:  # readers of configurations and of GGUF raise whatever they come across
            raise _config_error(self.files[0] if gguf else self.directory, error) from error
        return config

    @cached_property
    def spec(self) -> ModelSpec:
        """What the exporter needs to know of the model."""
        try:
            return ModelSpec.from_config(self.config, self._generation)
        except GptportError:
            raise
        except (
            Exception
        ) as error:  # some configurations raise what they like where a field is not the same for all layers
            raise UnsupportedModel(
                f"the configuration of {self.config.model_type!r} is not that of a GPT: {first_line(error)}"
            ) from error

    @property
    def _generation(self) -> dict[str, Any]:
        """What generation_config.json has."""
        path = self.directory / tokenizer_files.GENERATION
        try:
            found = json.loads(path.read_bytes()) if path.is_file() else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} is no JSON object; fetch it again, or remove it")
        return found

    @property
    def context_length(self) -> int:
        """The most tokens that the model takes: fewer than its configuration says where it does not count them from 0."""
        most = self.spec.context_length
        found = None if self.naming.is_part else positions.available(self.naming.model)
        return most if found is None else min(most, found)

    @cached_property
    def packing(self) -> Packing | None:
        """How matrices are stored, if they are in integers.

        Raises:
            UnsupportedModel: in a way that gptport does not read.
        """
        settings = getattr(self.whole_config, "quantization_config", None)
        if self.format == "gguf" or not settings:
            return None
        return Packing.of(settings if isinstance(settings, dict) else settings.to_dict())

    def __contains__(self, name: str) -> bool:
        return (
            self.naming.find(name) is not None
            or self._packed_module(name) is not None
            or name in self.naming.converted
        )

    def tensor(self, name: str) -> torch.Tensor:
        """The values of a parameter, in the checkpoint's dtype.

        Raises:
            CheckpointError: there is no such tensor, or the file is damaged.
        """
        module = self._packed_module(name)
        if module is not None:
            return self._unpack(module).dense()
        if self.naming.find(name) is None and name in self.naming.converted:
            return self._joined(name, self.stored_tensor)
        return self.stored_tensor(self._stored(name))

    def sources(self, name: str) -> tuple[str, ...]:
        """The names of the stored tensors that a parameter is read from."""
        module = self._packed_module(name)
        if module is not None:
            return tuple(module + kind for kind in packed.KINDS)
        stored = self.naming.find(name)
        if stored is not None:
            return (stored,)
        return tuple(piece for pieces in self.naming.converted[name].pieces.values() for piece in pieces)

    def blocks(self, name: str, quantization: Quantization) -> Blocks | None:
        """A matrix in the integers that the checkpoint has; None if it has none, or others than `quantization` wants."""
        module = self._packed_module(name)
        if module is None or self.packing is None or self.packing.bits != quantization.bits:
            return None
        return self._unpack(module).blocks(quantization)

    def _packed_module(self, name: str) -> str | None:
        """The stored name of the module whose weight is in integers."""
        if self.packing is None or not name.endswith(".weight"):
            return None
        values = self.naming.find(name.removesuffix(".weight") + packed.VALUES)
        return values and values.removesuffix(packed.VALUES)

    def _unpack(self, module: str) -> Packed:
        assert self.packing is not None
        return packed.read(
            module,
            self.packing,
            lambda name: self.stored_tensor(name) if name in self.naming.stored else None,
        )

    def stored_tensor(self, stored: str) -> torch.Tensor:
        """The values of a tensor, by the name that it has in the checkpoint."""
        if self.format != "safetensors":
            return self.state_dict[stored]
        path, _ = self._safetensors[stored]
        try:
            with safe_open(path, "pt") as file:
                values: torch.Tensor = file.get_tensor(stored)
                return values
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged: {error}; fetch it again") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter.

        Raises:
            CheckpointError: there is no such tensor.
        """
        module = self._packed_module(name)
        if module is not None and self.packing is not None:
            return self.packing.shape(self.stored_shape(module + packed.VALUES))
        if self.naming.find(name) is None and name in self.naming.converted:
            empty = self._joined(name, lambda stored: torch.empty(self.stored_shape(stored), device="meta"))
            return tuple(empty.shape)
        return self.stored_shape(self._stored(name))

    def _joined(self, name: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        made = self.naming.converted[name]
        try:
            return made.make(read)
        except (RuntimeError, IndexError, KeyError, StopIteration) as error:
            counts = ", ".join(f"{len(names)} × {pattern}" for pattern, names in made.pieces.items())
            raise CheckpointError(
                f"{self.directory} has no whole {name!r}: of its pieces there are {counts}; is the checkpoint complete?"
            ) from error

    def stored_shape(self, stored: str) -> tuple[int, ...]:
        """The shape of a tensor, by the name that it has in the checkpoint."""
        return (
            self._safetensors[stored][1]
            if self.format == "safetensors"
            else tuple(self.state_dict[stored].shape)
        )

    @property
    def parameters(self) -> int:
        """How many numbers the stored tensors have."""
        return sum(math.prod(shape) for _, shape in self._safetensors.values())

    def tokenizer_files(self) -> dict[str, bytes]:
        """Name → content of the tokenizer's files and of generation_config.json; `tokenizer.json` is always there.

        Raises:
            CheckpointError: the checkpoint has no tokenizer that can be written as tokenizer.json, or its template is no text.
        """
        return tokenizer_files.read(self, trust_remote_code=self.trust_remote_code)

    def _stored(self, name: str) -> str:
        stored = self.naming.find(name)
        if stored is None:
            raise CheckpointError(
                f"{self.directory} has no tensor {name!r}, which its architecture needs; is the checkpoint complete?"
            )
        return stored

    @cached_property
    def naming(self) -> Naming:
        """How stored tensors are named."""
        stored = self._safetensors if self.format == "safetensors" else self.state_dict
        return Naming(frozenset(stored), self.whole_config, self.config, self.trust_remote_code)

    @cached_property
    def _safetensors(self) -> dict[str, tuple[Path, tuple[int, ...]]]:
        """Name of a stored tensor → its file and its shape."""
        stored = {}
        for path in self.files:
            try:
                with safe_open(path, "pt") as file:
                    names = file.keys()
                    stored.update({name: (path, tuple(file.get_slice(name).get_shape())) for name in names})
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} is not a whole safetensors file: {error}; fetch it again"
                ) from error
        return stored

    @cached_property
    def state_dict(self) -> dict[str, torch.Tensor]:
        """All parameters, of a format that is not read lazily."""
        if self.format == "pickle":
            merged: dict[str, torch.Tensor] = {}
            for path in self.files:
                merged.update(_unpickled(path))
            return merged
        architecture: Any = AutoModelForCausalLM
        try:
            model, loading = architecture.from_pretrained(
                self.directory, gguf_file=self.files[0].name, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # see `config`
            raise CheckpointError(f"{self.files[0]} cannot be read: {first_line(error)}") from error
        missing = sorted(loading["missing_keys"])
        if missing:
            raise CheckpointError(
                f"{self.files[0]} has no tensor for {missing[0]!r}, which its architecture needs; is the file complete?"
            )
        return dict(model.state_dict())


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickle, which is mapped unless torch before 1.6 wrote it."""
    try:
        tensors = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a pickle of tensors alone: {first_line(error)}"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(each, torch.Tensor) for each in tensors.values()):
        raise CheckpointError(f"{path} is not a dictionary of tensors by name; save the model's state_dict()")
    return tensors


def open_checkpoint(
    source: str, *, allow_pickle: bool = False, trust_remote_code: bool = False
) -> Checkpoint:
    """The checkpoint of a directory or a hub id; see `locate`."""
    location = locate(source, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    return located(location, trust_remote_code=trust_remote_code)


def located(location: Location, *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint that was found there."""
    return Checkpoint(**vars(location), trust_remote_code=trust_remote_code)


def _config_error(directory: Path, error: Exception) -> CheckpointError | UnsupportedModel:
    text = first_line(error)
    if "trust_remote_code" in str(error):
        return CheckpointError(
            f"{directory} brings Python code of its own, which is not run; pass --trust-remote-code if you trust its author"
        )
    if "model type" in text:
        return UnsupportedModel(f"the installed transformers does not know this architecture: {text}")
    return CheckpointError(f"{directory} has a configuration that cannot be read: {text}")
