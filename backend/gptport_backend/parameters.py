"""The inputs of a text model, in one table: Triton's configuration, the checks and docs/generation.md follow it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptport_backend.prompt_lookup import MOST_GUESSED

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Parameter:
    """An input tensor of the text model: one value, or with `many` a list of them.

    `allowed` describes what `accepts` takes; it is part of the error message. Without a `default`, what is left out is None.
    `blank` is what other clients send where they want nothing; it counts as left out.
    """

    name: str
    dtype: str
    default: Any
    allowed: str
    meaning: str
    accepts: Callable[[Any], bool] = lambda _: True
    many: bool = False
    blank: Any = None

    @property
    def dims(self) -> list[int]:
        """The shape, as Triton's configuration has it."""
        return [-1] if self.many else [1]


def _at_least(least: float) -> Callable[[Any], bool]:
    return lambda value: math.isfinite(value) and value >= least


def _from_to(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: low <= value <= high


MOST_ANSWERS = 128  # of one request
MOST_BEAMS = 64
MOST_CHARACTERS = 100_000
MOST_JSON = 4_000_000  # characters: while it is read, which takes up to a second, no stream goes on
MOST_TEXTS = 1000  # that each new token is compared with
TEXTS = (
    f"a list of at most {MOST_TEXTS} texts, of {MOST_CHARACTERS} characters together, none of them empty; "
    "or one empty text, for none"
)
NO_TEXTS = ("",)  # of clients for TensorRT-LLM's models
FORM = f"a text of 1 to {MOST_CHARACTERS} characters"
JSON = f"JSON of 1 to {MOST_JSON} characters"


def _are_texts(texts: tuple[str, ...]) -> bool:
    return all(texts) and len(texts) <= MOST_TEXTS and sum(map(len, texts)) <= MOST_CHARACTERS


def _is_json(text: str) -> bool:
    return 0 < len(text) <= MOST_JSON


def _is_form(text: str) -> bool:
    return 0 < len(text) <= MOST_CHARACTERS


PARAMETERS = (
    Parameter("text_input", "BYTES", None, "a text that is not empty", "the prompt, as is", bool),
    Parameter(
        "input_ids",
        "INT32",
        None,
        "a list of token ids that is not empty, each 0 or more",
        "the prompt as token ids, instead of `text_input`",
        lambda ids: len(ids) > 0 and min(ids) >= 0,
        many=True,
    ),
    Parameter(
        "messages",
        "BYTES",
        None,
        JSON,
        "a conversation instead of a prompt: a list of objects with `role` and `content`, put into the model's chat template",
        _is_json,
    ),
    Parameter(
        "chat_template_kwargs",
        "BYTES",
        None,
        JSON,
        "an object of variables for the chat template, such as `tools`; "
        "`continue_final_message` and `chat_template` are as in transformers",
        _is_json,
    ),
    Parameter(
        "lora_name",
        "BYTES",
        None,
        "a text that is not empty",
        "the LoRA adapter to generate with, one of those beside the model; none if left out",
        bool,
    ),
    Parameter(
        "max_tokens",
        "INT32",
        256,
        "1 or more, or 0 with prompt_logprobs",
        "most new tokens; generation also ends where the sequence reaches the model's length",
        _at_least(0),
    ),
    Parameter(
        "temperature", "FP32", 0.0, "a finite number, 0 (greedy) or more", "more is more random", _at_least(0)
    ),
    Parameter("top_k", "INT32", 0, "0 (all) or more", "keep the k likeliest tokens", _at_least(0)),
    Parameter(
        "top_p",
        "FP32",
        1.0,
        "from 0 to 1",
        "keep the smallest set of likeliest tokens whose probability reaches p; never fewer than one",
        _from_to(0, 1),
    ),
    Parameter(
        "min_p",
        "FP32",
        0.0,
        "from 0 to 1",
        "keep the tokens at least p times as likely as the likeliest one",
        _from_to(0, 1),
    ),
    Parameter(
        "typical_p",
        "FP32",
        1.0,
        "above 0, at most 1",
        "keep the tokens nearest to the expected surprise whose probability reaches p",
        lambda p: 0 < p <= 1,
    ),
    Parameter(
        "repetition_penalty",
        "FP32",
        1.0,
        "a finite number above 0",
        "divides positive logits, multiplies negative ones, of the tokens in prompt and answer",
        lambda r: math.isfinite(r) and r > 0,
    ),
    Parameter(
        "presence_penalty",
        "FP32",
        0.0,
        "from -2 to 2",
        "taken from the logits of the tokens in the answer",
        _from_to(-2, 2),
    ),
    Parameter(
        "frequency_penalty",
        "FP32",
        0.0,
        "from -2 to 2",
        "taken from the logits of the tokens in the answer, as often as each is there",
        _from_to(-2, 2),
    ),
    Parameter(
        "logit_bias_ids",
        "INT32",
        (),
        "a list of token ids, each once and 0 or more",
        "tokens whose logits are changed",
        lambda ids: len(set(ids)) == len(ids) and min(ids, default=0) >= 0,
        many=True,
    ),
    Parameter(
        "logit_bias_values",
        "FP32",
        (),
        "a list of finite numbers, one for each of logit_bias_ids",
        "what is added to them",
        lambda values: all(map(math.isfinite, values)),
        many=True,
    ),
    Parameter(
        "bad_words",
        "BYTES",
        (),
        TEXTS,
        "texts whose tokens, with or without a space before them, never come",
        _are_texts,
        many=True,
        blank=NO_TEXTS,
    ),
    Parameter(
        "n",
        "INT32",
        1,
        f"from 1 to {MOST_ANSWERS}",
        "answers to give, the one with the index i drawn with seed + i; the prompt is computed once",
        _from_to(1, MOST_ANSWERS),
    ),
    Parameter(
        "beam_width",
        "INT32",
        1,
        f"from 1 to {MOST_BEAMS}",
        "more than 1: beam search with so many beams; `n` of the best hypotheses are the answers, all at the end",
        _from_to(1, MOST_BEAMS),
    ),
    Parameter(
        "length_penalty",
        "FP32",
        1.0,
        "from -10 to 10",
        "of beam search: hypotheses are compared by log-probability over length to this power",
        _from_to(-10, 10),
    ),
    Parameter("seed", "UINT64", None, "0 or more", "same seed, same text; random if left out"),
    Parameter(
        "stop_words",
        "BYTES",
        (),
        TEXTS,
        "end before the first of these texts, or special tokens, the one that ends first; it is not part of the answer",
        _are_texts,
        many=True,
        blank=NO_TEXTS,
    ),
    Parameter(
        "stop_token_ids",
        "INT32",
        (),
        "a list of token ids, each 0 or more",
        "end with the first of these tokens, as with an end-of-text token",
        lambda ids: min(ids, default=0) >= 0,
        many=True,
    ),
    Parameter(
        "min_tokens",
        "INT32",
        0,
        "0 or more",
        "neither an end-of-text token nor one of stop_token_ids comes before so many new tokens",
        _at_least(0),
    ),
    Parameter(
        "ignore_eos", "BOOL", False, "true or false", "true: an end-of-text token does not end the answer"
    ),
    Parameter(
        "json_schema",
        "BYTES",
        None,
        FORM,
        "the answer is JSON of this schema; `{}` for any",
        _is_form,
    ),
    Parameter("regex", "BYTES", None, FORM, "the whole answer matches this regular expression", _is_form),
    Parameter(
        "choice",
        "BYTES",
        (),
        f"a list of texts, none of them empty, of {MOST_CHARACTERS} characters together",
        "the answer is one of these texts",
        lambda texts: all(texts) and sum(map(len, texts)) <= MOST_CHARACTERS,
        many=True,
    ),
    Parameter(
        "grammar",
        "BYTES",
        None,
        FORM,
        "the answer is of this grammar, in llguidance's kind of Lark",
        _is_form,
    ),
    Parameter(
        "timeout",
        "FP32",
        None,
        "a finite number above 0",
        "seconds from the arrival of the request after which the answer ends with what is there",
        lambda seconds: math.isfinite(seconds) and seconds > 0,
    ),
    Parameter(
        "priority", "INT32", 0, "any", "of the requests that wait, the one with the smallest runs first"
    ),
    Parameter(
        "logprobs",
        "INT32",
        None,
        "from 0 to 20",
        "return the logarithm of each new token's probability, and of the n likeliest at its place",
        _from_to(0, 20),
    ),
    Parameter(
        "prompt_logprobs",
        "INT32",
        None,
        "from 0 to 20",
        "return the log-probabilities of the prompt's tokens but the first, and the n likeliest in the place of each",
        _from_to(0, 20),
    ),
    Parameter(
        "prompt_lookup",
        "INT32",
        0,
        f"from 0 to {MOST_GUESSED}",
        "most tokens guessed at once from what prompt and answer repeat; the same text in fewer steps",
        _from_to(0, MOST_GUESSED),
    ),
    Parameter("stream", "BOOL", False, "true or false", "a response for each piece of text, not one for all"),
    Parameter(
        "exclude_input_in_output", "BOOL", True, "true or false", "false: the text begins with the prompt"
    ),
)
