"""Keys and values that the client holds, and sends with each request: those of a graph whose cache grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gptport_client._step_wire import growing_request, read_growing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gptport_client._errors import GptportError
    from gptport_client._flow import Flow
    from gptport_client._message import InferRequest, InferResponse
    from gptport_client._model import CacheLayout, ModelConfig
    from gptport_client._sampling import Logits

_LOGITS_BYTES = 64 << 20  # of one answer: most such graphs give the logits of every token


class RequestCache:
    """A `StepCache` of arrays `[1, heads, tokens, head_dim]`, which nothing changes: an answer brings new ones.

    The server keeps nothing, so that nothing can be lost there.
    """

    def __init__(self, model: ModelConfig, layout: CacheLayout, request_id: str) -> None:
        self._model = model
        self._layout = layout
        self._request_id = request_id
        all_logits = "num_logits_to_keep" not in layout.inputs
        self.most = max(1, _LOGITS_BYTES // (4 * model.vocab_size)) if all_logits else model.max_length
        self._asked = 0  # tokens that the next answer has keys and values of
        dtype = f"<u{layout.width // layout.head_dim}"  # only their bytes matter here
        empty = np.zeros((1, layout.heads, 0, layout.head_dim), dtype)
        self._arrays: tuple[NDArray[np.generic], ...] = (empty,) * len(layout.tensors)

    def prepare(self, past: int, count: int, timeout: float | None) -> Flow[None]:  # noqa: ARG002
        """See `StepCache`, as for all that follow."""
        yield from ()

    def request(self, past: int, token_ids: Sequence[int], *, end: bool) -> InferRequest:  # noqa: ARG002
        self._asked = past + len(token_ids)
        arrays = [array[:, :, :past] for array in self._arrays]
        return growing_request(self._model.name, self._request_id, self._layout, token_ids, past, arrays)

    def receive(self, response: InferResponse) -> Logits:
        logits, self._arrays = read_growing(response, self._layout, self._model.vocab_size, self._asked)
        return logits

    def lost(self, error: GptportError) -> str:  # noqa: ARG002
        return ""

    def recover(self, tokens: Sequence[int]) -> int:
        return len(tokens)

    def fork(self, past: int) -> tuple[RequestCache, int]:
        other = RequestCache(self._model, self._layout, self._request_id)
        other._arrays = self._arrays
        return other, past

    def end(self, tokens: Sequence[int]) -> None:
        """Nothing is to be forgotten."""
