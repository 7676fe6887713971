"""What a request's JSON asks for, in the client's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from gptport_client import Message, Prompt, SamplingParams
from gptport_gateway.errors import RequestError

MOST_ANSWERS = 128
# OpenAI's defaults where they are not ours.
_DEFAULTS: dict[str, Any] = {"temperature": 1.0}
_COMPLETION_TOKENS = 16
_REWRITTEN = ("max_tokens", "logprobs", "logit_bias")  # where OpenAI's value is not quite ours
_OURS = tuple(field.name for field in fields(SamplingParams))  # beyond OpenAI's, as other servers offer them
# These change nothing here.
_IGNORED = frozenset(
    [
        *(
            "user",
            "metadata",
            "store",
            "safety_identifier",
            "service_tier",
            "parallel_tool_calls",
            "verbosity",
        ),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning_effort"),
    ]
)
_SHARED = frozenset(("model", "stream", "stream_options", "n", *_OURS))
_OF_CHAT = _SHARED | {"messages", "max_completion_tokens", "top_logprobs", "response_format"}
_OF_COMPLETION = _SHARED | {"prompt", "echo", "best_of"}


@dataclass(frozen=True)
class Asked:
    """A checked request.

    Attributes:
        model: its name; what follows a colon in the request's is the LoRA adapter, in `params`.
        prompts: each is answered `n` times; a conversation is one of them.
        params: of all.
        unlimited: whether only the model's length ends an answer, not `params.max_tokens`.
        n: answers for each prompt.
        stream: whether they come in pieces.
        include_usage: whether a stream ends with the usage.
        echo: whether an answer begins with its prompt.
    """

    model: str
    prompts: tuple[Prompt | Sequence[Message], ...]
    params: SamplingParams
    unlimited: bool
    n: int
    stream: bool
    include_usage: bool
    echo: bool = False


def chat(body: Mapping[str, Any]) -> Asked:
    """The request of /v1/chat/completions.

    Raises:
        RequestError, InvalidRequest: a field is wrong, or one that is not supported.
    """
    _check_fields(body, _OF_CHAT)
    limit = _first(body, "max_completion_tokens", "max_tokens")
    messages = tuple(_message(index, message) for index, message in enumerate(_list(body, "messages")))
    if not messages:
        raise RequestError("messages is empty; give at least one message", "messages")
    logprobs = (body.get("top_logprobs") or 0) if _boolean(body, "logprobs") else None
    return _asked(body, (messages,), limit, logprobs)


def completion(body: Mapping[str, Any]) -> Asked:
    """The request of /v1/completions.

    Raises:
        RequestError, InvalidRequest: a field is wrong, or one that is not supported.
    """
    _check_fields(body, _OF_COMPLETION)
    if body.get("best_of") not in (None, body.get("n") or 1):
        raise RequestError("best_of is not supported beyond n; leave it out", "best_of")
    limit = _first(body, "max_tokens")
    limit = _COMPLETION_TOKENS if limit is None else limit
    echo, logprobs = _boolean(body, "echo"), body.get("logprobs")
    n = body.get("n") or 1
    if echo and limit == 0 and n != 1:
        raise RequestError(f"n is {n!r}; with max_tokens 0 it must be 1", "n")
    if echo and n == 1 and (logprobs is not None or limit == 0):
        body = {**body, "prompt_logprobs": logprobs or 0}
    asked = _asked(body, _prompts(body.get("prompt")), limit, logprobs)
    if asked.params.prompt_logprobs is not None and asked.n > 1:
        raise RequestError(f"n is {asked.n}; with prompt_logprobs it must be 1", "n")
    return replace(asked, echo=echo)


def _asked(body: Mapping[str, Any], prompts: tuple[Any, ...], limit: Any, logprobs: Any) -> Asked:
    n = body.get("n")
    n = 1 if n is None else n
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n * len(prompts) <= MOST_ANSWERS:
        raise RequestError(f"n is {n!r}; give 1 or more, and at most {MOST_ANSWERS} answers in all", "n")
    same = {name: body[name] for name in _OURS if name not in _REWRITTEN and body.get(name) is not None}
    limited = {} if limit is None else {"max_tokens": limit}
    own = {**limited, **_form(body), "logprobs": logprobs, "logit_bias": _biases(body)}
    model, _, adapter = _model(body).partition(":")
    if adapter:
        own["lora_name"] = adapter
    params = SamplingParams(**{**_DEFAULTS, **same, **own})
    options = body.get("stream_options") or {}
    if not isinstance(options, Mapping):
        raise RequestError(f"stream_options is {options!r}; give an object", "stream_options")
    return Asked(
        model=model,
        prompts=prompts,
        params=params,
        unlimited=limit is None,
        n=n,
        stream=_boolean(body, "stream"),
        include_usage=_boolean(options, "include_usage"),
    )


def _model(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError(f"model is {model!r}; give a model's name, such as /v1/models lists them", "model")
    return model


def _check_fields(body: Mapping[str, Any], known: frozenset[str]) -> None:
    # What is null or false or empty asks for nothing.
    unknown = {name for name, value in body.items() if value} - known - _IGNORED
    if unknown:
        name = min(unknown)
        raise RequestError(f"{name} is not supported; leave it out", name)


def _form(body: Mapping[str, Any]) -> dict[str, Any]:
    form = body.get("response_format") or {"type": "text"}
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    described = form.get("json_schema") if kind == "json_schema" else None
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if not isinstance(schema, Mapping):
        raise RequestError(
            f"response_format is {str(form)[:100]}; give type text, json_object, or json_schema with a schema",
            "response_format",
        )
    return {"json_schema": schema}


def _biases(body: Mapping[str, Any]) -> dict[int, Any]:
    biases = body.get("logit_bias") or {}
    if not isinstance(biases, Mapping) or not all(str(token).isdecimal() for token in biases):
        raise RequestError(f"logit_bias is {biases!r}; give an object of token ids and numbers", "logit_bias")
    return {int(token): bias for token, bias in biases.items()}


def _message(index: int, message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise RequestError(f"messages[{index}] is no object; give role and content", "messages")
    role = message.get("role")
    if not isinstance(role, str):
        raise RequestError(f"messages[{index}].role is {role!r}; give system, user or assistant", "messages")
    return {
        "role": "system" if role == "developer" else role,
        "content": _content(index, message.get("content")),
    }


def _content(index: int, content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    found = [text for text in texts if isinstance(text, str)]
    if len(found) != len(parts):
        raise RequestError(f"messages[{index}].content is no text; only text is supported", "messages")
    return "".join(found)


def _prompts(prompt: Any) -> tuple[Prompt, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not prompt:
        raise RequestError("prompt is missing; give a text, token ids, or a list of these", "prompt")
    return (prompt,) if isinstance(prompt[0], int) else tuple(prompt)


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if not isinstance(value, list):
        raise RequestError(f"{name} is missing or no list; give a list", name)
    return value


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False):
        raise RequestError(f"{name} is {value!r}; give true or false", name)
    return bool(value)


def _first(body: Mapping[str, Any], *names: str) -> Any:
    return next((body[name] for name in names if body.get(name) is not None), None)
