"""The outputs of a text model, in one table: Triton's configuration and docs/generation.md follow it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Output:
    """An output tensor of the text model."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    meaning: str


OUTPUTS = (
    Output(
        "text_output", "BYTES", (-1,), "the text, or with `stream` what is new of it; never half a character"
    ),
    Output("index", "INT32", (-1,), "of `n` answers, the one that this is, from 0"),
    Output(
        "output_ids",
        "INT32",
        (-1,),
        "the new token ids of this response (an end-of-text token is included, ids behind a stop string's first token too)",
    ),
    Output(
        "finish_reason",
        "BYTES",
        (-1,),
        "empty until the last response, then `stop` (a token or text that ends it), `length`, `cancelled` or `timeout`",
    ),
    Output("num_input_tokens", "UINT32", (1,), "tokens of the prompt"),
    Output("num_output_tokens", "UINT32", (-1,), "new tokens so far"),
    Output(
        "cum_log_probs",
        "FP32",
        (-1,),
        "with `beam_width`: the sum of the log-probabilities of an answer's tokens",
    ),
    Output(
        "output_log_probs",
        "FP32",
        (-1,),
        "with `logprobs`: of `output_ids`, by the model's own logits, before anything changes them",
    ),
    Output(
        "top_log_prob_ids",
        "INT32",
        (-1, -1),
        "with `logprobs`: the likeliest tokens in the place of each of `output_ids`",
    ),
    Output("top_log_probs", "FP32", (-1, -1), "with `logprobs`: theirs"),
    Output(
        "prompt_ids",
        "INT32",
        (-1,),
        "with `prompt_logprobs`, as the next three, in the first response: the n tokens of the prompt",
    ),
    Output("prompt_log_probs", "FP32", (-1,), "n - 1 numbers: of the second token and those behind it"),
    Output(
        "prompt_top_log_prob_ids", "INT32", (-1, -1), "[n - 1, k]: the likeliest tokens in the place of each"
    ),
    Output("prompt_top_log_probs", "FP32", (-1, -1), "[n - 1, k]: theirs"),
)
