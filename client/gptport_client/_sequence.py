"""The requests of one sequence on the step model. Pure: it only counts."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from gptport_client._wire import InferRequest, step_request

if TYPE_CHECKING:
    from collections.abc import Sequence


class StepSequence:
    """Builds a series of requests with one random sequence id, the first marked as start, the last as end.

    Attributes:
        open: whether the server may hold state for the sequence: it was started and not ended.
        length: tokens appended so far.
    """

    def __init__(self, model: str, request_id: str) -> None:
        self._model = model
        self._request_id = request_id
        self._id = 1 + secrets.randbelow(2**63 - 1)
        self.open = False
        self.length = 0

    def append(self, token_ids: Sequence[int], *, end: bool = False) -> InferRequest:
        """The request that appends `token_ids`; with `end` it is the sequence's last one."""
        request = step_request(
            self._model, self._request_id, self._id, token_ids, self.length, start=self.length == 0, end=end
        )
        self.length += len(token_ids)
        self.open = not end
        return request
