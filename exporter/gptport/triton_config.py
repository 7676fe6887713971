"""config.pbtxt of the two models, through Triton's own protobuf schema, so that a wrong field fails here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from .errors import RepositoryError

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
}

# Inputs and outputs of the text model, as docs/protocol.md describes them: name, type, dimensions.
_TEXT_INPUTS = (
    ("text_input", pb.TYPE_STRING, [1]),
    ("input_ids", pb.TYPE_INT32, [-1]),
    ("max_tokens", pb.TYPE_INT32, [1]),
    ("temperature", pb.TYPE_FP32, [1]),
    ("top_k", pb.TYPE_INT32, [1]),
    ("top_p", pb.TYPE_FP32, [1]),
    ("seed", pb.TYPE_UINT64, [1]),
    ("stop_words", pb.TYPE_STRING, [-1]),
    ("stream", pb.TYPE_BOOL, [1]),
    ("exclude_input_in_output", pb.TYPE_BOOL, [1]),
)
_TEXT_OUTPUTS = (
    ("text_output", pb.TYPE_STRING, [1]),
    ("output_ids", pb.TYPE_INT32, [-1]),
    ("finish_reason", pb.TYPE_STRING, [1]),
    ("num_input_tokens", pb.TYPE_UINT32, [1]),
    ("num_output_tokens", pb.TYPE_UINT32, [1]),
)

PREVIOUS = "gptport_previous"

_MAX_SEQUENCES = 64
_SEQUENCE_IDLE_MICROSECONDS = 10 * 60 * 1_000_000


def parse(path: Path) -> pb.ModelConfig:
    """The configuration in a file.

    Raises:
        RepositoryError: it is none.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} cannot be read as a model configuration: {error}") from error


def text_model(manifest: Manifest, version: int, previous: int | None) -> bytes:
    """config.pbtxt of NAME: text in, text out. It serves this version and no other; `previous` is the one served before."""
    config = pb.ModelConfig(name=manifest.name, backend="gptport", max_batch_size=0)
    config.input.extend(pb.ModelInput(name=n, data_type=t, dims=d, optional=True) for n, t, d in _TEXT_INPUTS)
    config.output.extend(pb.ModelOutput(name=n, data_type=t, dims=d) for n, t, d in _TEXT_OUTPUTS)
    config.model_transaction_policy.decoupled = True
    return _finished(config, manifest, "text", version, previous)


def step_model(manifest: Manifest, name: str, version: int, previous: int | None) -> bytes:
    """config.pbtxt of NAME_step, by its `name`: ids in, logits out, the KV cache as implicit state of fixed size."""
    config = pb.ModelConfig(name=name, backend="onnxruntime", max_batch_size=1)
    config.default_model_filename = manifest.graph
    states = {tensor.past for tensor in manifest.kv_cache.tensors} | {
        tensor.present for tensor in manifest.kv_cache.tensors
    }
    config.input.extend(
        _tensor(pb.ModelInput, tensor) for tensor in manifest.inputs if tensor.name not in states
    )
    config.output.extend(
        _tensor(pb.ModelOutput, tensor) for tensor in manifest.outputs if tensor.name not in states
    )
    _add_states(config.sequence_batching, manifest)
    config.sequence_batching.oldest.max_candidate_sequences = _MAX_SEQUENCES
    config.sequence_batching.max_sequence_idle_microseconds = _SEQUENCE_IDLE_MICROSECONDS
    return _finished(config, manifest, "step", version, previous)


def _tensor(kind: type[pb.ModelInput | pb.ModelOutput], tensor: Tensor) -> pb.ModelInput | pb.ModelOutput:
    """A tensor of the graph; Triton counts the batch in `max_batch_size`, and wants a [1] for a scalar."""
    dims = [dim if isinstance(dim, int) else -1 for dim in tensor.shape[1:]]
    result = kind(name=tensor.name, data_type=_TYPES[tensor.dtype], dims=dims or [1])
    if not dims:
        result.reshape.SetInParent()
    return result


def _add_states(batching: pb.ModelSequenceBatching, manifest: Manifest) -> None:
    cache = manifest.kv_cache
    dims = [cache.kv_heads, manifest.max_length, cache.head_dim]
    for tensor in cache.tensors:
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
    config: pb.ModelConfig, manifest: Manifest, kind: str, version: int, previous: int | None
) -> bytes:
    for key, value in _parameters(manifest, kind).items():
        config.parameters[key].string_value = value
    if previous is not None:
        config.parameters[PREVIOUS].string_value = str(previous)
    # One engine batches all requests; a second instance on the same device would only take its time and memory. The attention
    # operator runs in half precision only on CUDA: float32 stays on the CPU, the rest goes to a GPU where there is one.
    on_cpu = manifest.kv_cache.dtype == "float32"
    config.instance_group.add(
        kind=pb.ModelInstanceGroup.KIND_CPU if on_cpu else pb.ModelInstanceGroup.KIND_AUTO, count=1
    )
    config.version_policy.specific.versions.append(version)
    return text_format.MessageToString(config).encode()


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
