"""The onnxruntime session, its inputs and outputs bound to memory that stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from gptport_backend import processor
from gptport_backend.adapters import Adapters
from gptport_backend.device_sampling import DeviceSampler
from gptport_backend.element_types import bound
from gptport_backend.errors import LoadError
from gptport_backend.logits import DeviceLogits, HostLogits, StepLogits
from gptport_backend.memory import CudaMemory, HostMemory, Memory, trim
from gptport_backend.side_by_side import SideBySide

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gptport_backend.adapters import Adapter
    from gptport_backend.kv_cache import KVCache
    from gptport_backend.manifest import Manifest
    from gptport_backend.side_by_side import Rows

ERRORS = 3  # of onnxruntime's log; among its warnings is one for each optional input with a default
MOST_BINDINGS = 256  # of decode steps: one for each way that adapters are spread over the rows
SAMPLERS = ("graph", "host")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class RunnerOptions:
    """How the graph runs: `device` cpu or cuda; CPU `threads`, None for as many as onnxruntime chooses.

    `sampler` says where tokens are drawn: on the `host`, or by a `graph` on the device; None for what suits the device.
    """

    device: str = "cpu"
    device_id: int = 0
    threads: int | None = None
    sampler: str | None = None

    @property
    def draws_on_device(self) -> bool:
        """Whether tokens are drawn by a graph."""
        return self.sampler == "graph" or (self.sampler is None and self.device != "cpu")


class Runner:
    """Runs the graph in place on the KV cache: past and present are bound to the same memory."""

    def __init__(self, manifest: Manifest, version_dir: Path, options: RunnerOptions, max_slots: int) -> None:
        if manifest.cache.dtype == "bfloat16" and options.device == "cpu":
            raise LoadError(
                "the model computes in bfloat16, which onnxruntime does on CUDA only: set KIND_GPU in config.pbtxt, "
                "or export it in another precision"
            )
        processor.check(manifest.cpu_flags, options.device)
        self._manifest = manifest
        self._session = _session(version_dir / manifest.graph, options)
        self.memory: Memory = CudaMemory(options.device_id) if options.device == "cuda" else HostMemory()
        _check_graph(manifest, self._session)
        try:
            self._logits = np.empty((max_slots, manifest.vocab_size), manifest.tensor("logits").dtype)
        except MemoryError as error:
            raise LoadError(
                f"max_batch_size is {max_slots}, and the logits of so many sequences find no place: {error}; set a smaller one"
            ) from error
        self._token_ids = np.zeros((max_slots, 1), manifest.tensor("input_ids").dtype)
        self._positions = np.zeros((max_slots, 1), manifest.tensor("position_ids").dtype)
        self._last = np.zeros(max_slots, manifest.tensor("seqlens_k").dtype)
        self._sampler = self._device_sampler(version_dir, options, max_slots)
        self.adapters = Adapters(manifest, version_dir)
        self._side_by_side = SideBySide(manifest.lora, self.memory)
        self._adapters: Rows = ()
        self._decode_bindings: dict[tuple[int, Rows], tuple[onnxruntime.IOBinding, list[Any]]] = {}
        self._bound_generations = (-1, -1)

    def use(self, adapters: Sequence[Adapter | None]) -> None:
        """Say with which adapter the sequence in each row of the cache is computed from now on."""
        self._adapters = tuple(adapters)
        self._side_by_side.use(self._adapters)

    def prefill(
        self, cache: KVCache, first_row: int, tokens: Sequence[Sequence[int]], start: int
    ) -> StepLogits:
        """Compute `tokens`, a list a row from `first_row` on; returns logits `[rows, vocab]` of the last.

        `start` tokens are in the cache already; unless it is 0, there may be only one row.
        The result is valid until the next call.
        """
        binding, _held = self._binding(cache, first_row, len(tokens))
        return self._run_step(binding, *self._chunk(tokens, start))

    def extend(self, cache: KVCache, row: int, tokens: Sequence[int], start: int) -> NDArray[Any]:
        """Compute `tokens` of one row, behind the `start` tokens there; returns logits of each, `[tokens, vocab]`."""
        binding, _held = self._binding(cache, row, 1)
        offsets = onnxruntime.OrtValue.ortvalue_from_numpy(np.arange(len(tokens) - 1, -1, -1, np.int64))
        binding.bind_ortvalue_input(self._manifest.roles["logits_offsets"], offsets)
        logits = np.empty((len(tokens), *self._logits.shape[1:]), self._logits.dtype)
        self._run(binding, *self._chunk([tokens], start), logits)
        return logits

    def _chunk(
        self, tokens: Sequence[Sequence[int]], start: int
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """The ids, right-padded, their positions, and the last position of each row."""
        rows, longest = len(tokens), max(map(len, tokens))
        token_ids = np.zeros((rows, longest), self._token_ids.dtype)
        for row, ids in enumerate(tokens):
            token_ids[row, : len(ids)] = ids
        positions = np.arange(start, start + longest, dtype=self._positions.dtype)[np.newaxis]
        last = np.array([start + len(ids) - 1 for ids in tokens], self._last.dtype)
        return token_ids, positions.repeat(rows, axis=0), last

    def decode(self, cache: KVCache, tokens: Sequence[int], lengths: Sequence[int]) -> StepLogits:
        """Compute a token for each row, behind the `lengths` tokens there; returns logits `[rows, vocab]`.

        The result is valid until the next call.
        """
        rows = len(tokens)
        self._token_ids[:rows, 0] = tokens
        self._positions[:rows, 0] = lengths
        self._last[:rows] = lengths
        binding = self._decode_binding(cache, rows)
        return self._run_step(binding, self._token_ids[:rows], self._positions[:rows], self._last[:rows])

    def shrink(self, cache: KVCache) -> None:
        """Let onnxruntime give back what the largest steps took of its arena on the CPU, at the end of a step of one token.

        The first position of row 0 of the cache is lost.
        """
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        first = self._token_ids[:1], self._positions[:1], self._last[:1]
        for array in first:
            array[:] = 0
        self._run(self._decode_binding(cache, 1), *first, self._logits[:1], options)
        trim()

    def _decode_binding(self, cache: KVCache, rows: int) -> onnxruntime.IOBinding:
        generations = cache.generation, self._side_by_side.generation
        if self._bound_generations != generations or len(self._decode_bindings) > MOST_BINDINGS:
            self._decode_bindings.clear()
            self._bound_generations = generations
        key = rows, self._adapters[:rows]
        if key not in self._decode_bindings:
            self._decode_bindings[key] = self._binding(cache, 0, rows)
        return self._decode_bindings[key][0]

    def _binding(self, cache: KVCache, first_row: int, rows: int) -> tuple[onnxruntime.IOBinding, list[Any]]:
        """Bound to these rows of the cache and to their adapters, and what must live as long."""
        binding = self._session.io_binding()
        self._bind_cache(binding, cache, first_row, rows)
        return binding, self._side_by_side.bind(binding, self._adapters[first_row : first_row + rows])

    def _bind_cache(self, binding: onnxruntime.IOBinding, cache: KVCache, first_row: int, rows: int) -> None:
        spec = self._manifest.cache
        dtype = bound(spec.dtype)
        for names, buffer in zip(spec.tensors, cache.buffers, strict=True):
            place = (
                self.memory.device,
                self.memory.device_id,
                dtype,
                (rows, *buffer.shape[1:]),
                buffer.row_address(first_row),
            )
            binding.bind_input(names.past, *place)
            binding.bind_output(names.present, *place)

    def _run_step(
        self,
        binding: onnxruntime.IOBinding,
        token_ids: NDArray[Any],
        positions: NDArray[Any],
        last: NDArray[Any],
    ) -> StepLogits:
        rows = len(last)
        if self._sampler is None:
            self._run(binding, token_ids, positions, last, self._logits[:rows])
            return HostLogits(self._logits[:rows])
        self._run(binding, token_ids, positions, last, None)
        return DeviceLogits(self._sampler, rows)

    def _run(
        self,
        binding: onnxruntime.IOBinding,
        token_ids: NDArray[Any],
        positions: NDArray[Any],
        last: NDArray[Any],
        logits: NDArray[Any] | None,
        options: onnxruntime.RunOptions | None = None,
    ) -> None:
        """The logits go to that array, or, with None, to where the device's sampler has them."""
        # Bound anew for every run, which costs microseconds: onnxruntime copies host inputs to another device
        # when they are bound, not when the graph runs.
        roles = self._manifest.roles
        _bind_host(binding.bind_input, roles["input_ids"], token_ids)
        _bind_host(binding.bind_input, roles["position_ids"], positions)
        _bind_host(binding.bind_input, roles["seqlens_k"], last)
        if logits is not None:
            _bind_host(binding.bind_output, roles["logits"], logits)
        else:
            assert self._sampler is not None
            self._sampler.bind_logits(binding.bind_output, roles["logits"], len(last))
        self.memory.wait()
        self._session.run_with_iobinding(binding, options)

    def _device_sampler(
        self, version_dir: Path, options: RunnerOptions, max_slots: int
    ) -> DeviceSampler | None:
        graph = self._manifest.sampler
        if graph is None and options.sampler == "graph":
            raise LoadError(
                "the parameter sampler in config.pbtxt is 'graph', and the model was exported before there was one: "
                "export it again, or set host"
            )
        if not options.draws_on_device or graph is None:
            return None
        session = _session(version_dir / graph, options)
        dtype = self._manifest.tensor("logits").dtype
        return DeviceSampler(session, self.memory, max_slots, self._manifest.vocab_size, dtype)


def _bind_host(bind: Any, name: str, array: NDArray[Any]) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _session(graph: Path, options: RunnerOptions) -> onnxruntime.InferenceSession:
    provider = PROVIDERS[options.device]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise LoadError(
            f"the model is configured for {options.device}, but this onnxruntime {onnxruntime.__version__} "
            f"has only {', '.join(available)}: install onnxruntime-gpu, or set KIND_CPU in config.pbtxt"
        )
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = ERRORS
    # Its threads wait for work by spinning, up to 20 ms after a step: between two steps others need their cores.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    settings_of_provider = {"device_id": str(options.device_id)} if options.device == "cuda" else {}
    try:
        return onnxruntime.InferenceSession(str(graph), settings, [(provider, settings_of_provider)])
    except Exception as error:  # onnxruntime's errors have no common base of their own
        raise LoadError(f"onnxruntime {onnxruntime.__version__} cannot load {graph}: {error}") from error


def _check_graph(manifest: Manifest, session: onnxruntime.InferenceSession) -> None:
    """The graph's inputs must be those of the manifest, or a run would fail later with less to read."""
    found = {item.name for item in (*session.get_inputs(), *session.get_overridable_initializers())}
    inputs = ("input_ids", "position_ids", "seqlens_k", "logits_offsets")
    expected = {manifest.roles[role] for role in inputs}
    expected.update(tensor.past for tensor in manifest.cache.tensors)
    expected.update(name for each in manifest.lora for name in (each.down, each.up, each.rows))
    if found != expected:
        different = ", ".join(sorted(found ^ expected))
        raise LoadError(f"the inputs of {manifest.graph} are not those of the manifest: {different}")
