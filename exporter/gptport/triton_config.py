"""config.pbtxt of the text model and the step models, through Triton's own protobuf schema, so that a wrong field fails here."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from .errors import RepositoryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .manifest import Manifest, Tensor

_TYPES = {
    "int32": pb.TYPE_INT32,
    "int64": pb.TYPE_INT64,
    "float16": pb.TYPE_FP16,
    "float32": pb.TYPE_FP32,
    "bfloat16": pb.TYPE_BF16,
    "bool": pb.TYPE_BOOL,
}

StepCache: TypeAlias = Literal["server", "client", "both"]

PREVIOUS = "gptport_previous"

# The text model computes one token before Triton calls it ready. The step model cannot be warmed up: Triton's warm-up passes the
# sequence batcher by, and without a sequence there is no state to answer with.
_WARMUP_TOKENS = "one_token"
WARMUP_FILES = {f"warmup/{_WARMUP_TOKENS}": struct.pack("<i", 1)}

_MAX_SEQUENCES = 64
_SEQUENCE_IDLE_MICROSECONDS = 10 * 60 * 1_000_000


@dataclass(frozen=True)
class Serving:
    """Where and how a model is to run.

    Attributes:
        instances: of each model, on the CPU or on each GPU.
        gpus: their numbers; none for the CPU, or for one GPU where there is one if the model computes in half precision.
        threads: of an instance on the CPU; None for one a core.
        step_cache: who holds the keys and values of a client's own loop: `server`, `client` or `both`.
    """

    instances: int = 1
    gpus: tuple[int, ...] = ()
    threads: int | None = None
    step_cache: StepCache = "server"

    def check(self, dtype: str) -> None:
        """Whether a model that computes in `dtype` can run so.

        Raises:
            UsageError: it cannot.
        """
        if self.gpus and dtype == "float32":
            raise UsageError(
                "--gpus goes with fp16, bf16, or --compute fp16: on CUDA, onnxruntime's attention is in half precision"
            )


def parse(path: Path) -> pb.ModelConfig:
    """The configuration in a file.

    Raises:
        RepositoryError: it is none.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} cannot be read as a model configuration: {error}") from error


def text_model(manifest: Manifest, version: int, previous: int | None, serving: Serving = Serving()) -> bytes:
    """config.pbtxt of NAME: text in, text out. It serves this version and no other; `previous` is the one served before.

    Its inputs and outputs are not here: the backend completes them when it loads the model.
    """
    config = pb.ModelConfig(name=manifest.name, backend="gptport", max_batch_size=0)
    config.model_transaction_policy.decoupled = True
    _add_warmup(config)
    if serving.threads is not None:
        config.parameters["threads"].string_value = str(serving.threads)
    return _finished(config, manifest, "text", version, previous, serving)


def _add_warmup(config: pb.ModelConfig) -> None:
    """A request for one token behind the token 0; what is left out has its default."""
    warmup = config.model_warmup.add(name="one token", batch_size=1)
    token = pb.ModelWarmup.Input(data_type=pb.TYPE_INT32, dims=[1], zero_data=True)
    count = pb.ModelWarmup.Input(data_type=pb.TYPE_INT32, dims=[1], input_data_file=_WARMUP_TOKENS)
    warmup.inputs["input_ids"].CopyFrom(token)
    warmup.inputs["max_tokens"].CopyFrom(count)


def step_model(
    manifest: Manifest, name: str, version: int, previous: int | None, serving: Serving = Serving()
) -> bytes:
    """config.pbtxt of NAME_step, by its `name`: ids in, logits out, the KV cache as implicit state of fixed size."""
    states = {tensor.past for tensor in manifest.kv_cache.tensors} | {
        tensor.present for tensor in manifest.kv_cache.tensors
    }
    config = _graph_model(manifest, name, states, serving)
    _add_states(config.sequence_batching, manifest)
    config.sequence_batching.oldest.max_candidate_sequences = _MAX_SEQUENCES
    config.sequence_batching.max_sequence_idle_microseconds = _SEQUENCE_IDLE_MICROSECONDS
    return _finished(config, manifest, "step", version, previous, serving)


def kv_model(
    manifest: Manifest, name: str, version: int, previous: int | None, serving: Serving = Serving()
) -> bytes:
    """config.pbtxt of NAME_kv, by its `name`: ids and the KV cache in, logits and the KV cache out. It knows no sequences.

    The n-th cache input belongs to the n-th cache output. Their length is the client's: -1 here, as the graph has it.
    """
    config = _graph_model(manifest, name, set(), serving)
    return _finished(config, manifest, "kv", version, previous, serving)


def growing_model(
    manifest: Manifest, name: str, version: int, previous: int | None, serving: Serving = Serving()
) -> bytes:
    """config.pbtxt of NAME_step, by its `name`, where the graph's cache grows: the graph as it is, batch dimensions included.

    The n-th cache input belongs to the n-th cache output. Each request brings a cache, and takes a longer one away.
    """
    config = _graph_model(manifest, name, set(), serving, batching=False)
    return _finished(config, manifest, "growing", version, previous, serving)


def _graph_model(
    manifest: Manifest, name: str, hidden: set[str], serving: Serving, *, batching: bool = True
) -> pb.ModelConfig:
    """The graph on Triton's onnxruntime backend, with all its inputs and outputs that are not hidden."""
    config = pb.ModelConfig(name=name, backend="onnxruntime", max_batch_size=int(batching))
    config.default_model_filename = manifest.graph
    for kind, tensors, listed in (
        (pb.ModelInput, manifest.inputs, config.input),
        (pb.ModelOutput, manifest.outputs, config.output),
    ):
        shown = [tensor for tensor in tensors if tensor.name not in hidden]
        listed.extend(_tensor(kind, tensor, batching=batching) for tensor in shown)
    # The graph is a chain: its operators run one after the other, each on all threads (0: one a core).
    threads = {"execution_mode": 0, "intra_op_thread_count": serving.threads or 0, "inter_op_thread_count": 1}
    for key, value in threads.items():
        config.parameters[key].string_value = str(value)
    return config


def _tensor(
    kind: type[pb.ModelInput | pb.ModelOutput], tensor: Tensor, *, batching: bool
) -> pb.ModelInput | pb.ModelOutput:
    """A tensor of the graph; Triton wants a [1] for a scalar. With batching, it counts the batch in `max_batch_size`.

    Without, its onnxruntime backend makes a scalar of a [1] where the graph has one, and Triton refuses an empty reshape.
    """
    dims = [dim if isinstance(dim, int) else -1 for dim in tensor.shape[int(batching) :]]
    result = kind(name=tensor.name, data_type=_TYPES[tensor.dtype], dims=dims or [1])
    if not dims and batching:
        result.reshape.SetInParent()
    return result


def _add_states(batching: pb.ModelSequenceBatching, manifest: Manifest) -> None:
    cache = manifest.kv_cache
    for tensor, (heads, head_dim) in zip(cache.tensors, manifest.cache_shapes, strict=True):
        dims = [heads, manifest.max_length, head_dim]
        state = batching.state.add(
            input_name=tensor.past,
            output_name=tensor.present,
            data_type=_TYPES[cache.dtype],
            dims=dims,
            use_same_buffer_for_input_output=True,
        )
        state.initial_state.add(
            name=f"zero_{tensor.past}", data_type=_TYPES[cache.dtype], dims=dims, zero_data=True
        )


def _finished(
    config: pb.ModelConfig,
    manifest: Manifest,
    kind: str,
    version: int,
    previous: int | None,
    serving: Serving,
) -> bytes:
    for key, value in _parameters(manifest, kind).items():
        config.parameters[key].string_value = value
    if previous is not None:
        config.parameters[PREVIOUS].string_value = str(previous)
    config.instance_group.append(_instances(serving, manifest.kv_cache.dtype))
    config.version_policy.specific.versions.append(version)
    config.response_cache.enable = False  # an answer is drawn, or depends on the sequence
    return text_format.MessageToString(config).encode()


def _instances(serving: Serving, dtype: str) -> pb.ModelInstanceGroup:
    """One engine batches all requests; a second instance on the same device takes memory, and helps only where threads are left.

    On CUDA the attention operator is in half precision only: float32 stays on the CPU, the rest goes to a GPU where there is one.
    """
    kinds = pb.ModelInstanceGroup
    kind = kinds.KIND_GPU if serving.gpus else kinds.KIND_CPU if dtype == "float32" else kinds.KIND_AUTO
    return pb.ModelInstanceGroup(kind=kind, count=serving.instances, gpus=serving.gpus)


def _parameters(manifest: Manifest, kind: str) -> Mapping[str, str]:
    """What a client wants to know and cannot read from the tensors."""
    bos: Sequence[int] = () if manifest.tokens.bos is None else (manifest.tokens.bos,)
    return {
        "gptport_schema": str(manifest.schema_version),
        "gptport_kind": kind,
        "max_length": str(manifest.max_length),
        "vocab_size": str(manifest.vocab_size),
        "bos_token_id": ",".join(map(str, bos)),
        "eos_token_ids": ",".join(map(str, manifest.tokens.eos)),
        "tokenizer_sha256": manifest.tokenizer_sha256,
    }
