"""What a request asks for: Triton's tensors, checked against the table of parameters, in a frozen dataclass."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptport_backend.errors import RequestError
from gptport_backend.grammar import FIELDS, Form
from gptport_backend.parameters import PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gptport_backend.parameters import Parameter

Tensor: TypeAlias = NDArray[Any]

# What the python backend of Triton makes of a tensor of this type; BYTES arrive as objects (bytes).
NUMPY_TYPES: dict[str, type[Any]] = {
    "BYTES": np.object_,
    "INT32": np.int32,
    "FP32": np.float32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
}


NOT_WITH_BEAMS = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "min_tokens", "stop_words", "bad_words"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias_ids", "logit_bias_values"),
    *("logprobs", "prompt_logprobs", "prompt_lookup", *FIELDS),
)
PROMPTS = ("text_input", "input_ids", "messages")


@dataclass(frozen=True)
class SamplingParameters:
    """How the next token is chosen; see docs/protocol.md, "Sampling, exactly"."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """A request whose every field was checked; exactly one of `text`, `token_ids` and `messages` is there."""

    text: str | None
    token_ids: tuple[int, ...] | None
    messages: str | None
    chat_template_kwargs: str | None
    lora_name: str | None
    max_tokens: int
    sampling: SamplingParameters
    stop_words: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    bad_words: tuple[str, ...]
    ignore_eos: bool
    form: Form | None
    timeout: float | None
    priority: int
    stream: bool
    exclude_input: bool
    n: int
    beam_width: int
    length_penalty: float
    prompt_logprobs: int | None
    prompt_lookup: int

    @property
    def sequences(self) -> int:
        """How many of those that the scheduler knows it is: one for each answer, or one beam search."""
        return self.n if self.beam_width == 1 else 1


def parse(tensors: Mapping[str, Tensor], microseconds: int = 0) -> GenerationRequest:
    """Check the input tensors, by name, of one request; RequestError names the field that is wrong.

    `microseconds` is Triton's own timeout of the request, 0 for none: the shorter one counts.
    """
    unknown = tensors.keys() - {parameter.name for parameter in PARAMETERS}
    if unknown:
        raise unknown_input(min(unknown))
    value = {parameter.name: _value(parameter, tensors.get(parameter.name)) for parameter in PARAMETERS}
    prompts = [name for name in PROMPTS if value[name] is not None]
    if len(prompts) != 1:
        found = f"both {prompts[0]} and {prompts[1]}" if prompts else "no prompt"
        raise RequestError(f"the request has {found}; send exactly one of {', '.join(PROMPTS)}")
    if value["chat_template_kwargs"] is not None and value["messages"] is None:
        raise RequestError("chat_template_kwargs is there without messages; leave it out, or send messages")
    if value["max_tokens"] == 0 and value["prompt_logprobs"] is None:
        raise RequestError("max_tokens is 0; it must be 1 or more, unless prompt_logprobs is there")
    if value["max_tokens"] == 0 and value["n"] > 1:
        raise RequestError(f"n is {value['n']}; with max_tokens 0 it must be 1")
    _check_beams(value)
    return GenerationRequest(
        text=value["text_input"],
        token_ids=value["input_ids"],
        messages=value["messages"],
        chat_template_kwargs=value["chat_template_kwargs"],
        lora_name=value["lora_name"],
        max_tokens=value["max_tokens"],
        sampling=_sampling(value),
        stop_words=value["stop_words"],
        stop_token_ids=value["stop_token_ids"],
        bad_words=value["bad_words"],
        ignore_eos=value["ignore_eos"],
        form=_form(value),
        timeout=_shorter(value["timeout"], microseconds),
        priority=value["priority"],
        stream=value["stream"],
        exclude_input=value["exclude_input_in_output"],
        n=value["n"],
        beam_width=value["beam_width"],
        length_penalty=value["length_penalty"],
        prompt_logprobs=value["prompt_logprobs"],
        prompt_lookup=value["prompt_lookup"],
    )


def _check_beams(value: Mapping[str, Any]) -> None:
    """Beam search has no use for what changes or draws single tokens."""
    width = value["beam_width"]
    if width == 1:
        if value["length_penalty"] != 1:
            raise RequestError(
                f"length_penalty is {value['length_penalty']:g}; it must be 1 unless beam_width is more than 1"
            )
        return
    for parameter in PARAMETERS:
        if parameter.name in NOT_WITH_BEAMS and value[parameter.name] != parameter.default:
            raise RequestError(
                f"{parameter.name} is {_shown(value[parameter.name])}; with a beam_width of {width} it must be left out"
            )
    if value["n"] > width:
        raise RequestError(f"n is {value['n']}; it must be at most beam_width, which is {width}")


def _sampling(value: Mapping[str, Any]) -> SamplingParameters:
    ids, biases = value["logit_bias_ids"], value["logit_bias_values"]
    if len(ids) != len(biases):
        raise RequestError(
            f"logit_bias_values has {len(biases)} numbers for {len(ids)} logit_bias_ids; send one for each"
        )
    if value["min_tokens"] > value["max_tokens"]:
        raise RequestError(
            f"min_tokens is {value['min_tokens']}; it must be at most max_tokens, which is {value['max_tokens']}"
        )
    return SamplingParameters(
        temperature=value["temperature"],
        top_k=value["top_k"],
        top_p=value["top_p"],
        seed=value["seed"] if value["seed"] is not None else secrets.randbits(64),
        min_p=value["min_p"],
        typical_p=value["typical_p"],
        repetition_penalty=value["repetition_penalty"],
        presence_penalty=value["presence_penalty"],
        frequency_penalty=value["frequency_penalty"],
        logit_bias=tuple(zip(ids, biases, strict=True)),
        min_tokens=value["min_tokens"],
        logprobs=value["logprobs"],
    )


def _form(value: Mapping[str, Any]) -> Form | None:
    given = [Form(field, value[field]) for field in FIELDS if value[field]]
    if len(given) > 1:
        raise RequestError(
            f"{given[0].field} and {given[1].field} are both there; an answer can have one form only"
        )
    return given[0] if given else None


def _shorter(seconds: float | None, microseconds: int) -> float | None:
    given = [seconds] if seconds is not None else []
    return min([*given, microseconds / 1e6] if microseconds else given, default=None)


def unknown_input(name: str) -> RequestError:
    """The error about an input, or a request's parameter, that there is not."""
    known = ", ".join(parameter.name for parameter in PARAMETERS)
    return RequestError(f"{name[:80] or repr(name)} is not an input of this model; it takes {known}")


def check_token_ids(field: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """RequestError if an id of a list lies outside of the vocabulary."""
    worst = max(token_ids, default=0)
    if worst >= vocab_size:
        raise RequestError(f"{field} has the id {worst}; the vocabulary ends at {vocab_size - 1}")


def check_prompt_characters(field: str, text: str, max_length: int, longest_token: int, model: str) -> None:
    """RequestError if `text` cannot fit whatever its tokens are; much cheaper than to count the tokens."""
    if len(text) > max_length * longest_token:
        raise RequestError(
            f"{field} has {len(text)} characters; the {max_length} tokens of {model} cannot hold more than "
            f"{max_length * longest_token}: shorten the prompt, or export the model with a larger --max-length"
        )


def check_prompt_length(tokens: int, max_tokens: int, max_length: int, model: str) -> None:
    """RequestError if a prompt has no tokens, too many, or leaves no room for the new token that it needs."""
    if not tokens:
        raise RequestError(
            "the prompt has no tokens: the tokenizer or the chat template made nothing of it; send a longer text"
        )
    most = max_length - min(max_tokens, 1)
    if tokens > most:
        why = f", one less than its length of {max_length}" if max_tokens else ""
        raise RequestError(
            f"the prompt has {tokens} tokens; {model} takes at most {most}{why}: "
            "shorten the prompt, or export the model with a larger --max-length"
        )


def _value(parameter: Parameter, tensor: Tensor | None) -> Any:
    if tensor is None:
        return parameter.default
    _check_type(parameter, tensor)
    items = tensor.tolist()
    if parameter.dtype == "BYTES":
        items = [_text(parameter.name, item) for item in items]
    value = tuple(items) if parameter.many else items[0]
    if parameter.blank is not None and value == parameter.blank:
        return parameter.default
    if not parameter.accepts(value):
        raise RequestError(f"{parameter.name} is {_shown(value)}; it must be {parameter.allowed}")
    return value


def _check_type(parameter: Parameter, tensor: Tensor) -> None:
    expected = NUMPY_TYPES[parameter.dtype]
    # Empty BYTES tensors and hand-made ones come as fixed-width bytes.
    if tensor.dtype != expected and not (parameter.dtype == "BYTES" and tensor.dtype.kind == "S"):
        raise RequestError(f"{parameter.name} is of type {tensor.dtype}; it must be {parameter.dtype}")
    if tensor.ndim != 1 or (not parameter.many and tensor.size != 1):
        wanted = "[-1]" if parameter.many else "[1]"
        raise RequestError(f"{parameter.name} has the shape {list(tensor.shape)}; it must be {wanted}")


def _text(name: str, item: Any) -> str:
    if not isinstance(item, bytes):
        raise RequestError(f"{name} has an element of type {type(item).__name__}; it must be BYTES")
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{name} is not UTF-8: byte {item[error.start]:#04x} at position {error.start}; send UTF-8 text"
        ) from error


def _shown(value: Any) -> str:
    """At most 80 characters of a value; numbers as they were before float32 rounded them."""
    shown = repr(tuple(map(_short, value[:80])) if isinstance(value, tuple) else _short(value))
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _short(value: Any) -> Any:
    return float(str(np.float32(value))) if isinstance(value, float) else value
