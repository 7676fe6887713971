"""A stand-in for Triton's own `onnxruntime` backend, for servers that have none.

It serves an ONNX graph as config.pbtxt says, and reads nothing else, as the real one does: inputs and outputs
with their `reshape`, and implicit state, which is kept here as Triton's python backend has none. Where an input and an
output lie in one place of a client's shared memory, the real one hands that to the graph; Triton's python backend copies both.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

from gptport_backend.errors import BackendError, LoadError, RequestError
from gptport_backend.orphan import end_with_parent

# Triton ends an idle sequence without telling the backend. It goes first, and the memory a little later.
IDLE_MARGIN = 1.1


@dataclass(frozen=True)
class Tensor:
    """An input or output: `dims` on the wire and `shape` in the graph, both without the batch."""

    name: str
    dtype: type[Any]
    dims: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class State:
    """A tensor carried from one request of a sequence to the next; with `in_place` it stays in one buffer."""

    input_name: str
    output_name: str
    dtype: type[Any]
    dims: tuple[int, ...]
    in_place: bool


@dataclass
class Sequence:
    """The state of one correlation id, by input name."""

    values: dict[str, Any]
    last_used: float = field(default_factory=time.monotonic)


class TritonPythonModel:
    """One instance of a model with an ONNX graph."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph; whatever is raised becomes Triton's status of the model."""
        end_with_parent()
        config = json.loads(args["model_config"])
        if args["model_instance_kind"] == "GPU":
            raise LoadError(
                "the stand-in for Triton's onnxruntime backend runs on the CPU only; set KIND_CPU"
            )
        self._batch = (1,) if int(config["max_batch_size"]) else ()
        self._inputs = [_tensor(item) for item in config["input"]]
        self._outputs = [_tensor(item) for item in config["output"]]
        batching = config.get("sequence_batching", {})
        self._states = [_state(item) for item in batching.get("state", [])]
        self._idle_seconds = int(batching.get("max_sequence_idle_microseconds", 0)) / 1e6 * IDLE_MARGIN
        file = config.get("default_model_filename") or "model.onnx"
        self._session = _session(Path(args["model_repository"]) / args["model_version"] / file, config)
        self._inputs = self._with_scalars(self._inputs)
        self._check_graph()
        self._sequences: dict[Any, Sequence] = {}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails has no effect on the others."""
        self._forget_idle()
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            sequence = self._sequence(request) if self._states else Sequence({})
            outputs = self._run(self._feeds(request), sequence)
        except BackendError as error:
            return _error(error, pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            return _error(error, pb_utils.TritonError.INTERNAL)
        finally:
            if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
                self._sequences.pop(request.correlation_id(), None)
        return pb_utils.InferenceResponse(outputs)

    def _sequence(self, request: Any) -> Sequence:
        key = request.correlation_id()
        if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            self._sequences[key] = Sequence({state.input_name: self._zero(state) for state in self._states})
        if key not in self._sequences:
            raise RequestError(f"sequence {key} has no state here; begin it with sequence_start")
        sequence = self._sequences[key]
        sequence.last_used = time.monotonic()
        return sequence

    def _zero(self, state: State) -> Any:
        dims = [max(dim, 1) for dim in state.dims]  # Triton begins a dimension of -1 with 1
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((*self._batch, *dims), state.dtype))

    def _feeds(self, request: Any) -> dict[str, Any]:
        feeds = {}
        for tensor in self._inputs:
            value = pb_utils.get_input_tensor_by_name(request, tensor.name)
            if value is None:
                raise RequestError(f"the input {tensor.name} is missing")
            array = value.as_numpy()
            if tensor.shape != tensor.dims:
                array = array.reshape((*self._batch, *tensor.shape))
            feeds[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
        return feeds

    def _run(self, feeds: dict[str, Any], sequence: Sequence) -> list[Any]:
        binding = self._session.io_binding()
        for name, value in (feeds | sequence.values).items():
            binding.bind_ortvalue_input(name, value)
        for tensor in self._outputs:
            binding.bind_output(tensor.name, "cpu")
        for state in self._states:
            if state.in_place:
                binding.bind_ortvalue_output(state.output_name, sequence.values[state.input_name])
            else:
                binding.bind_output(state.output_name, "cpu")
        self._session.run_with_iobinding(binding)
        results = binding.get_outputs()
        for state, value in zip(self._states, results[len(self._outputs) :], strict=True):
            if not state.in_place:
                sequence.values[state.input_name] = value
        return [self._output(tensor, value) for tensor, value in zip(self._outputs, results, strict=False)]

    def _output(self, tensor: Tensor, value: Any) -> Any:
        array = value.numpy()
        if tensor.shape != tensor.dims:
            array = array.reshape((*self._batch, *tensor.dims))
        return pb_utils.Tensor(tensor.name, array)

    def _forget_idle(self) -> None:
        if not self._idle_seconds:
            return
        oldest = time.monotonic() - self._idle_seconds
        for key in [key for key, sequence in self._sequences.items() if sequence.last_used < oldest]:
            del self._sequences[key]

    def _with_scalars(self, inputs: list[Tensor]) -> list[Tensor]:
        """Without batching, a [1] in the configuration stands for a scalar of the graph, as for the real backend."""
        scalars = {item.name for item in self._session.get_inputs() if not item.shape and not self._batch}
        return [
            replace(tensor, shape=()) if tensor.name in scalars and set(tensor.dims) == {1} else tensor
            for tensor in inputs
        ]

    def _check_graph(self) -> None:
        """The names and fixed dimensions of the configuration must be the graph's."""
        inputs = {item.name: item.shape for item in self._session.get_inputs()}
        outputs = {item.name: item.shape for item in self._session.get_outputs()}
        for tensor in self._inputs:
            self._check_shape("input", tensor.name, tensor.shape, inputs)
        for tensor in self._outputs:
            self._check_shape("output", tensor.name, tensor.shape, outputs)
        for state in self._states:
            self._check_shape("input", state.input_name, state.dims, inputs)
            self._check_shape("output", state.output_name, state.dims, outputs)
        configured = {tensor.name for tensor in self._inputs} | {state.input_name for state in self._states}
        if missing := inputs.keys() - configured:
            raise LoadError(f"config.pbtxt lacks the graph's inputs {', '.join(sorted(missing))}")

    def _check_shape(self, kind: str, name: str, shape: tuple[int, ...], found: dict[str, list[Any]]) -> None:
        if name not in found:
            raise LoadError(f"the graph has no {kind} {name}; it has {', '.join(found)}")
        wanted = [-1] * len(self._batch) + list(shape)
        actual = [dim if isinstance(dim, int) else -1 for dim in found[name]]
        if len(wanted) != len(actual) or any(b not in (-1, a) for a, b in zip(wanted, actual, strict=True)):
            raise LoadError(
                f"the {kind} {name} is configured with the shape {wanted}; the graph has {actual}"
            )


def _tensor(item: dict[str, Any]) -> Tensor:
    dims = tuple(int(dim) for dim in item["dims"])
    reshape = item.get("reshape")
    shape = dims if reshape is None else tuple(int(dim) for dim in reshape.get("shape", []))
    return Tensor(item["name"], pb_utils.triton_string_to_numpy(item["data_type"]), dims, shape)


def _state(item: dict[str, Any]) -> State:
    return State(
        item["input_name"],
        item["output_name"],
        pb_utils.triton_string_to_numpy(item["data_type"]),
        tuple(int(dim) for dim in item["dims"]),
        bool(item.get("use_same_buffer_for_input_output")),
    )


def _session(graph: Path, config: dict[str, Any]) -> Any:
    settings = onnxruntime.SessionOptions()
    threads = config.get("parameters", {}).get("intra_op_thread_count", {}).get("string_value")
    if threads is not None:
        settings.intra_op_num_threads = int(threads)
    return onnxruntime.InferenceSession(str(graph), settings, ["CPUExecutionProvider"])


def _error(error: Exception, status: Any) -> Any:
    return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), status))
