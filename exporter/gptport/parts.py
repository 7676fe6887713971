"""The written graph, run on the CPU part by part, so that a model larger than memory can be run.

onnxruntime has no kernels for bfloat16 on the CPU: such a graph is run with its weights as they are and float32 for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .manifest import Manifest

_WHOLE = 640 << 20  # bytes of weights up to which the graph is one part
_PART = 256 << 20


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
    graph = onnx.load(folder / manifest.graph, load_external_data=False)
    _without_bfloat16(graph.graph)
    parts = list(_cut(graph.graph, _PART if _weight_bytes(graph.graph) > _WHOLE else None, watch))
    for call in calls:
        call.values.update(
            {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in call.inputs.items()}
        )
    for part in parts:
        session = _session(folder, graph, part, calls[0].values)
        caches: dict[str, dict[str, onnxruntime.OrtValue]] = {}
        for call in calls:
            _run(session, part, manifest, call, caches.setdefault(call.cache, {}))
    return len(parts)


def first_overflow(folder: Path, manifest: Manifest, call: Call) -> str:
    """Which operator gave the first value that is not finite, with its weight and its layer, for an error message."""
    model = onnx.load(folder / manifest.graph, load_external_data=False)
    _without_bfloat16(model.graph)
    weights = {each.name for each in model.graph.initializer}
    fresh = Call(call.cache, call.rows, call.length, call.inputs)
    fresh.values.update(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in call.inputs.items()}
    )
    for part in _cut(model.graph, 0):
        _run(_session(folder, model, part, fresh.values), part, manifest, fresh, {})
        found = [name for name in part.gives if name in fresh.values and not _is_finite(fresh.values[name])]
        if found:
            used = [name for name in part.nodes[0].input if name in weights]
            return f"{part.nodes[0].op_type} with {' and '.join(used) or found[0]}"
    return "the KV cache"


def _is_finite(value: onnxruntime.OrtValue) -> bool:
    array = value.numpy()
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _without_bfloat16(graph: onnx.GraphProto) -> None:
    """Inputs, outputs and what is computed become float32; weights are cast where they are used."""
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", TensorProto.BFLOAT16):
                attribute.i = TensorProto.FLOAT
    wide = {
        each.name: f"{each.name}.float32"
        for each in graph.initializer
        if each.data_type == TensorProto.BFLOAT16
    }
    nodes: list[onnx.NodeProto] = []
    cast: set[str] = set()
    for node in graph.node:
        first = dict.fromkeys(name for name in node.input if name in wide and name not in cast)
        nodes += [helper.make_node("Cast", [name], [wide[name]], to=TensorProto.FLOAT) for name in first]
        cast.update(first)
        inputs = [wide.get(name, name) for name in node.input]
        del node.input[:]
        node.input.extend(inputs)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _cut(graph: onnx.GraphProto, limit: int | None, watch: Collection[str] = ()) -> Iterator[_Part]:
    """Consecutive nodes with at most `limit` bytes of weights together, or a single node."""
    sizes = {each.name: _bytes(each) for each in graph.initializer}
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


def _session(
    folder: Path, model: onnx.ModelProto, part: _Part, values: dict[str, onnxruntime.OrtValue]
) -> onnxruntime.InferenceSession:
    whole = model.graph
    declared = {each.name: each for each in (*whole.input, *whole.output)}
    used = {name for node in part.nodes for name in node.input}
    graph = helper.make_graph(
        part.nodes,
        whole.name,
        [declared[name] if name in declared else _declared(name, values[name]) for name in part.takes],
        [
            declared.get(name, onnx.ValueInfoProto(name=name))
            for name in dict.fromkeys(part.gives + part.shows)
        ],
        [each for each in whole.initializer if each.name in used],
    )
    cut = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # an arena keeps what the largest call took
    if not any(node.op_type == "MatMulNBits" for node in part.nodes):  # whose kernel needs it to be fast
        # The weights stay mapped from the file instead of being copied into a packed layout: half the memory, same numbers.
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(cut.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _declared(name: str, value: onnxruntime.OrtValue) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, value.element_type(), [None] * len(value.shape()))


def _run(
    session: onnxruntime.InferenceSession,
    part: _Part,
    manifest: Manifest,
    call: Call,
    cache: dict[str, onnxruntime.OrtValue],
) -> None:
    binding = session.io_binding()
    kept = {tensor.present: tensor.past for tensor in manifest.kv_cache.tensors}
    shape = (call.rows, manifest.kv_cache.kv_heads, call.length, manifest.kv_cache.head_dim)
    for name in part.takes:
        if name in kept.values() and name not in cache:
            dtype = "float32" if manifest.kv_cache.dtype == "bfloat16" else manifest.kv_cache.dtype
            cache[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))
        if name in cache or name in call.values:
            binding.bind_ortvalue_input(name, cache.get(name) or call.values[name])
    wanted = list(dict.fromkeys(part.gives + part.shows * call.watched))
    for name in wanted:
        if name in kept:
            binding.bind_ortvalue_output(name, cache[kept[name]])
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding)
    for name, value in zip(wanted, binding.get_outputs_as_ortvaluevector(), strict=True):
        if call.watched and name in part.shows:
            call.seen[name] = value.numpy().astype(np.float32)
        if name in part.gives and name not in kept:
            # A copy: a value that onnxruntime allocated keeps the memory of its session.
            call.values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(value.numpy()))


def _weight_bytes(graph: onnx.GraphProto) -> int:
    return sum(map(_bytes, graph.initializer))


def _bytes(tensor: onnx.TensorProto) -> int:
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(np.prod(tensor.dims, dtype=np.int64)) * dtype.itemsize
