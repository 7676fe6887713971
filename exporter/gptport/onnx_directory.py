"""A directory with an ONNX graph that another exporter wrote, its configuration and its tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from . import foreign_graph
from .checkpoint import Checkpoint
from .errors import CheckpointError, UnsupportedModel
from .locate import hashing
from .spec import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    from .foreign_graph import ForeignGraph

_CONFIGS = ("genai_config.json", "config.json")


@dataclass(frozen=True)
class OnnxDirectory(Checkpoint):
    """Such a directory. Its configuration is onnxruntime-genai's, where it has one, else Hugging Face's.

    Attributes:
        graph: the decoder.
    """

    graph: ForeignGraph = None  # type: ignore[assignment] # behind a default; `opened` always gives it

    @cached_property
    def spec(self) -> ModelSpec:
        """What is known of the model.

        Raises:
            CheckpointError: the configuration cannot be read.
            UnsupportedModel: it is not that of a decoder-only transformer.
        """
        path = self.directory / _CONFIGS[0]
        if not path.is_file():
            return super().spec
        try:
            return ModelSpec.from_genai(json.loads(path.read_bytes()))
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON: {error}") from error


def opened(source: Path) -> OnnxDirectory:
    """The directory `source`, or that of the graph `source`.

    Raises:
        CheckpointError: it is not there, or incomplete.
        UnsupportedModel: its graph is none that is known.
    """
    directory = source.parent if source.is_file() else source
    if not directory.is_dir():
        raise CheckpointError(f"{source} is not a directory")
    configs = [directory / name for name in _CONFIGS if (directory / name).is_file()]
    if not configs:
        raise CheckpointError(
            f"{directory} has neither {' nor '.join(_CONFIGS)}; expected one beside the graph"
        )
    graph = _decoder([source] if source.is_file() else sorted(directory.glob("*.onnx")), directory)
    files = (graph.path, *graph.weights_files)
    name = directory.resolve().name
    return OnnxDirectory(name, directory, "onnx", files, hashing([*configs, *files]), graph=graph)


def _decoder(paths: list[Path], directory: Path) -> ForeignGraph:
    """The one graph with a cache."""
    models = {path: foreign_graph.load(path) for path in paths}
    found = {path: model for path, model in models.items() if foreign_graph.has_cache(model)}
    if not found:
        seen = ", ".join(path.name for path in paths) or "no *.onnx"
        raise UnsupportedModel(
            f"{directory} has {seen}; expected a graph with inputs past_key_values.N.key and .value"
        )
    if len(found) > 1:
        raise UnsupportedModel(
            f"{directory} has {len(found)} graphs with a cache, {', '.join(path.name for path in found)}; give the file of one"
        )
    ((path, model),) = found.items()
    return foreign_graph.recognised(path, model)
