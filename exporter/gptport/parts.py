"""The written graph, run on the CPU part by part, so that a model larger than memory can be run.

onnxruntime has no kernels for bfloat16 on the CPU: such a graph is run with its weights as they are and float32 for the rest.
Nor does it multiply float16 there: it takes such a product in float32 and rounds it. So do we, having made float32 of the
matrices once for all calls, in memory that all parts use; onnxruntime would do it in every call, in fresh memory.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .manifest import Manifest

_WHOLE = 640 << 20  # bytes of weights, as they are run, up to which the graph is one part
_PART = 384 << 20
_HALF: dict[int, torch.dtype] = {TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16}
_PRODUCTS = ("MatMul", "Gemm")
_INTEGERS = ("MatMulNBits", "GatherBlockQuantized", "QMoE")


@dataclass
class Call:
    """A call of the graph.

    Attributes:
        cache: calls with the same one continue each other.
        rows, length: of that cache.
        inputs: name → value, all but the cache.
        watched: whether the values that `run` is to watch are wanted of this call.
        values: what the parts computed so far for those after them, and in the end the logits.
        seen: what each watched value was, float32.
    """

    cache: str
    rows: int
    length: int
    inputs: dict[str, NDArray[np.generic]]
    watched: bool = False
    values: dict[str, onnxruntime.OrtValue] = field(default_factory=dict)
    seen: dict[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    nodes: list[onnx.NodeProto]
    takes: list[str]
    gives: list[str]
    shows: list[str]


def run(folder: Path, manifest: Manifest, calls: Sequence[Call], watch: Collection[str] = ()) -> int:
    """Run the calls, each by all parts of the graph, past and present in the same memory; how many parts there were.

    The values of every call are then those that the graph's outputs have, but for the cache; `watch` names values inside of
    the graph that are wanted beside them.
    """
    graph = _Graph(folder, onnx.load(folder / manifest.graph, load_external_data=False))
    size = sum(graph.sizes.values())
    parts = list(_cut(graph, _PART if size > _WHOLE else None, watch))
    for call in calls:
        call.values.update(
            {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in call.inputs.items()}
        )
    for part in parts:
        session = graph.session(part, calls[0].values)
        caches: dict[str, dict[str, onnxruntime.OrtValue]] = {}
        for call in calls:
            _run(session, part, manifest, call, caches.setdefault(call.cache, {}))
        del session  # before the next part takes the memory of its weights
    return len(parts)


def first_overflow(folder: Path, manifest: Manifest, call: Call) -> str:
    """Which operator gave the first value that is not finite, with its weight and its layer, for an error message."""
    graph = _Graph(folder, onnx.load(folder / manifest.graph, load_external_data=False))
    fresh = Call(call.cache, call.rows, call.length, call.inputs)
    fresh.values.update(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in call.inputs.items()}
    )
    for part in _cut(graph, 0):
        _run(graph.session(part, fresh.values), part, manifest, fresh, {})
        found = [name for name in part.gives if name in fresh.values and not _is_finite(fresh.values[name])]
        if found:
            used = [name for name in part.nodes[0].input if name in graph.weights]
            return f"{part.nodes[0].op_type} with {' and '.join(used) or found[0]}"
    return "the KV cache"


def _is_finite(value: onnxruntime.OrtValue) -> bool:
    array = value.numpy()
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


@dataclass(frozen=True)
class _Session:
    """A part that can be run, and those of its weights that it takes as inputs."""

    onnxruntime: onnxruntime.InferenceSession
    weights: dict[str, onnxruntime.OrtValue]


class _Graph:
    """The graph, and the memory for those of its weights that are not run as they are stored.

    Attributes:
        model: what is run; where its weights are bfloat16, everything else is float32.
        weights: name → initializer.
        sizes: name → bytes of it, as it is run.
    """

    def __init__(self, folder: Path, model: onnx.ModelProto) -> None:
        _without_bfloat16(model.graph)
        self.model = model
        self.weights = {each.name: each for each in model.graph.initializer}
        self._folder = folder
        self._widen_scales()
        given = {each.name for each in model.graph.input}  # as an adapter's matrices are
        multiplied = {
            name for node in model.graph.node if node.op_type in _PRODUCTS for name in node.input[1:2]
        } - given
        self._widened = {
            name
            for name, each in self.weights.items()
            if each.data_type == TensorProto.BFLOAT16
            or (each.data_type == TensorProto.FLOAT16 and name in multiplied)
        }
        self.sizes = {
            name: _elements(each) * (4 if name in self._widened else _bytes_each(each))
            for name, each in self.weights.items()
        }
        self._memory = torch.empty(0)

    def _widen_scales(self) -> None:
        """Scales in bfloat16 become float32: onnxruntime's kernels for integers take constants only (else they give zeros)."""
        integers = {
            name for node in self.model.graph.node if node.op_type in _INTEGERS for name in node.input
        }
        for name, each in self.weights.items():
            if name in integers and each.data_type == TensorProto.BFLOAT16:
                values = _stored(self._folder, each, _elements(each)).float().numpy()
                each.CopyFrom(numpy_helper.from_array(values.reshape(each.dims), name))

    def session(self, part: _Part, values: Mapping[str, onnxruntime.OrtValue]) -> _Session:
        """What runs a part on values like these; with the next one, the weights of this one are gone."""
        whole, used = self.model.graph, {name for node in part.nodes for name in node.input}
        declared = {each.name: each for each in (*whole.input, *whole.output)}
        wide = self._wide([name for name in self._widened if name in used])
        given = {**values, **wide}
        nodes = [each for node in part.nodes for each in self._in_float32(node)]
        stored = {name for node in nodes for name in node.input} - wide.keys()
        graph = helper.make_graph(
            nodes,
            whole.name,
            [
                declared[name] if name in declared else _declared(name, given[name])
                for name in (*part.takes, *wide)
            ],
            [
                declared.get(name, onnx.ValueInfoProto(name=name))
                for name in dict.fromkeys(part.gives + part.shows)
            ],
            [each for name, each in self.weights.items() if name in stored],
        )
        cut = helper.make_model(
            graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )
        options = _options(self._folder, part)
        session = onnxruntime.InferenceSession(cut.SerializeToString(), options, ["CPUExecutionProvider"])
        return _Session(session, wide)

    def _wide(self, names: Sequence[str]) -> dict[str, onnxruntime.OrtValue]:
        """Weights in float32, by the names that `_in_float32` has for them, in the memory that those before them had."""
        sizes = [_elements(self.weights[name]) for name in names]
        if self._memory.numel() < sum(sizes):
            self._memory = torch.empty(0)
            self._memory = torch.empty(sum(sizes))
        found = {}
        for name, size, place in zip(names, sizes, self._memory[: sum(sizes)].split(sizes), strict=True):
            tensor = self.weights[name]
            place.copy_(_stored(self._folder, tensor, size))
            found[self._name(name)] = onnxruntime.OrtValue.ortvalue_from_numpy(
                place.view(*tensor.dims).numpy()
            )
        return found

    def _name(self, name: str) -> str:
        """Of a widened weight; one in float16 may be used as it is too."""
        return f"{name}.float32" if self.weights[name].data_type == TensorProto.FLOAT16 else name

    def _in_float32(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """A product with a widened float16 matrix, between casts."""
        matrix = node.input[1] if node.op_type in _PRODUCTS else ""
        if matrix not in self._widened or self.weights[matrix].data_type != TensorProto.FLOAT16:
            yield node
            return
        for name in node.input:
            if name != matrix:
                yield helper.make_node("Cast", [name], [f"{name}.float32"], to=TensorProto.FLOAT)
        product = onnx.NodeProto()
        product.CopyFrom(node)
        del product.input[:], product.output[:]
        product.input.extend(f"{name}.float32" for name in node.input)
        product.output.append(f"{node.output[0]}.float32")
        yield product
        yield helper.make_node("Cast", product.output, node.output, to=TensorProto.FLOAT16)


def _options(folder: Path, part: _Part) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # an arena keeps what the largest call took
    if not any(node.op_type == "MatMulNBits" for node in part.nodes):  # whose kernel needs it to be fast
        # The weights stay mapped from the file instead of being copied into a packed layout: half the memory, same numbers.
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Threads that wait leave their cores to what is done beside this.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return options


def _stored(folder: Path, tensor: onnx.TensorProto, size: int) -> torch.Tensor:
    """The values of a float16 or bfloat16 initializer, where they are."""
    dtype = _HALF[tensor.data_type]
    if not tensor.external_data:
        return torch.frombuffer(bytearray(tensor.raw_data), dtype=dtype)
    where = {each.key: each.value for each in tensor.external_data}
    mapped = np.memmap(
        folder / where["location"], np.int16, "r", offset=int(where.get("offset", "0")), shape=(size,)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it must not be written to
        return torch.from_numpy(mapped).view(dtype)


def _without_bfloat16(graph: onnx.GraphProto) -> None:
    """Inputs, outputs and what is computed become float32."""
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", TensorProto.BFLOAT16):
                attribute.i = TensorProto.FLOAT


def _cut(whole: _Graph, limit: int | None, watch: Collection[str] = ()) -> Iterator[_Part]:
    """Consecutive nodes with at most `limit` bytes of weights together, or a single node."""
    graph, sizes = whole.model.graph, whole.sizes
    pieces: list[list[onnx.NodeProto]] = [[]]
    held: set[str] = set()
    for node in graph.node:
        held |= {name for name in node.input if name in sizes}
        if limit is not None and pieces[-1] and sum(sizes[name] for name in held) > limit:
            pieces.append([])
            held = {name for name in node.input if name in sizes}
        pieces[-1].append(node)
    last_use = {name: i for i, nodes in enumerate(pieces) for node in nodes for name in node.input}
    last_use |= {output.name: len(pieces) for output in graph.output}
    for i, nodes in enumerate(pieces):
        made = [name for node in nodes for name in node.output if name]
        used = dict.fromkeys(name for node in nodes for name in node.input if name)
        inner = {*made, *(sizes.keys() - {each.name for each in graph.input})}
        gives = [name for name in made if last_use.get(name, -1) > i]
        shows = [name for name in made if name in watch]
        yield _Part(nodes, [name for name in used if name not in inner], gives, shows)


def _declared(name: str, value: onnxruntime.OrtValue) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, value.element_type(), [None] * len(value.shape()))


def _run(
    session: _Session,
    part: _Part,
    manifest: Manifest,
    call: Call,
    cache: dict[str, onnxruntime.OrtValue],
) -> None:
    binding = session.onnxruntime.io_binding()
    for name, value in session.weights.items():
        binding.bind_ortvalue_input(name, value)
    kept = {tensor.present: tensor.past for tensor in manifest.kv_cache.tensors}
    pasts = (tensor.past for tensor in manifest.kv_cache.tensors)
    shapes = dict(zip(pasts, manifest.cache_shapes, strict=True))
    for name in part.takes:
        if name in kept.values() and name not in cache:
            heads, head_dim = shapes[name]
            dtype = "float32" if manifest.kv_cache.dtype == "bfloat16" else manifest.kv_cache.dtype
            cache[name] = onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((call.rows, heads, call.length, head_dim), dtype)
            )
        if name in cache or name in call.values:
            binding.bind_ortvalue_input(name, cache.get(name) or call.values[name])
    wanted = list(dict.fromkeys(part.gives + part.shows * call.watched))
    for name in wanted:
        if name in kept:
            binding.bind_ortvalue_output(name, cache[kept[name]])
        else:
            binding.bind_output(name)
    session.onnxruntime.run_with_iobinding(binding)
    for name, value in zip(wanted, binding.get_outputs_as_ortvaluevector(), strict=True):
        if call.watched and name in part.shows:
            call.seen[name] = value.numpy().astype(np.float32)
        if name in part.gives and name not in kept:
            # A copy: a value that onnxruntime allocated keeps the memory of its session.
            call.values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(value.numpy()))


def _elements(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def _bytes_each(tensor: onnx.TensorProto) -> int:
    return int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
