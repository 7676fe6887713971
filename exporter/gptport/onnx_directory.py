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
_SUBFOLDER = "onnx"  # where transformers.js looks for graphs, beside which the rest lies
_WITH_PAST, _MERGED = "decoder_with_past_model.onnx", "decoder_model_merged.onnx"
_EXPORT = "optimum-cli export onnx --model CHECKPOINT --task text-generation-with-past DIR"


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
    """The directory `source`, or that of the graph `source`. Graphs may be in a folder `onnx` of it.

    Raises:
        CheckpointError: it is not there, or incomplete.
        UnsupportedModel: its graph is none that is known.
    """
    directory = source.parent if source.is_file() else source
    if not directory.is_dir():
        raise CheckpointError(f"{source} is not a directory")
    paths = [source] if source.is_file() else _graphs(directory)
    directory = _root(paths[0].parent)
    _check_decoder_only(directory)
    graph = _decoder(paths, directory)
    files = (graph.path, *graph.weights_files)
    configs = [directory / name for name in _CONFIGS if (directory / name).is_file()]
    name = directory.resolve().name
    return OnnxDirectory(name, directory, "onnx", files, hashing([*configs, *files]), graph=graph)


def _graphs(directory: Path) -> list[Path]:
    for folder in (directory, directory / _SUBFOLDER):
        found = sorted(folder.glob("*.onnx"))
        if found:
            return found
    checkpoint = any(directory.glob("*.safetensors")) or any(directory.glob("*.gguf"))
    advice = f"it is a checkpoint: gptport export {directory}" if checkpoint else "expected one with a graph"
    raise CheckpointError(f"{directory} has no *.onnx, neither has {_SUBFOLDER}/ in it; {advice}")


def _root(folder: Path) -> Path:
    """Where the configuration is: beside the graph, or above it."""
    folders = [folder, *([folder.resolve().parent] if folder.resolve().name == _SUBFOLDER else [])]
    for each in folders:
        if any((each / name).is_file() for name in _CONFIGS):
            return each
    raise CheckpointError(f"{folder} has neither {' nor '.join(_CONFIGS)}; expected one beside the graph")


def _check_decoder_only(directory: Path) -> None:
    path = directory / _CONFIGS[1]
    try:
        config = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if isinstance(config, dict) and config.get("is_encoder_decoder"):
        raise UnsupportedModel(
            f"{directory} is an encoder-decoder model ({config.get('model_type')}); gptport packages decoder-only models"
        )


def _decoder(paths: list[Path], directory: Path) -> ForeignGraph:
    """The one graph with a cache."""
    inputs = {path: foreign_graph.input_names(path) for path in paths}
    found = [path for path in paths if foreign_graph.has_cache(inputs[path])]
    if not found:
        raise UnsupportedModel(_without_cache(inputs))
    if {path.name for path in found} == {_WITH_PAST, _MERGED}:  # the second has what the first has
        found = [path for path in found if path.name == _MERGED]
    if len(found) > 1:
        raise UnsupportedModel(
            f"{directory} has {len(found)} graphs with a cache, {', '.join(path.name for path in found)}; "
            f"give the file of one: gptport package {found[0]}"
        )
    (path,) = found
    return foreign_graph.recognised(path, foreign_graph.load(path))


def _without_cache(inputs: dict[Path, list[str]]) -> str:
    """What graphs without a cache are."""
    path, names = next(iter(inputs.items()))
    seen = ", ".join(each.name for each in inputs)
    if any("encoder" in name for each in inputs.values() for name in each):
        return f"{path.parent} has {seen}, an encoder-decoder model; gptport packages decoder-only models"
    if "input_ids" not in names:
        return f"{path} takes {', '.join(names)}; expected input_ids and past_key_values.N.key and .value"
    return (
        f"{path.parent} has {seen} without a cache (inputs: {', '.join(names)}), which would compute the whole text anew for "
        f"each token; expected inputs past_key_values.N.key and .value: {_EXPORT}"
    )
