"""How likely a text is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptport_client._errors import InvalidRequest, ProtocolError

if TYPE_CHECKING:
    from gptport_client._results import Result


@dataclass(frozen=True)
class Score:
    """The log-probabilities of a text's tokens, each given those before it.

    Attributes:
        token_ids: the text's tokens.
        logprobs: natural logarithms, one for each token but the first, which nothing is before.
        top: in the place of each of these, the likeliest tokens with theirs, the likeliest first, as many as were asked for.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...] = ()

    @property
    def logprob(self) -> float:
        """Of the whole text, given its first token."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        return math.exp(-self.logprob / max(len(self.logprobs), 1))


def asked_score(result: Result) -> Score:
    """The score in the answer to a request for nothing else.

    Raises:
        InvalidRequest: the text had one token only.
        ProtocolError: there is none.
    """
    if result.prompt_score is None:
        raise ProtocolError("the server sent no log-probabilities of the prompt", result.request_id)
    if not result.prompt_score.logprobs:
        raise InvalidRequest(
            "the text has 1 token, which nothing is before; give one of 2 or more", result.request_id
        )
    return result.prompt_score
