"""The client's own loop: one request a token to the step model, and everything else done here."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from gptport_client._errors import Cancelled, ProtocolError
from gptport_client._generation import Generation, token_logprob
from gptport_client._score import Score
from gptport_client._sequence import StepSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_client._deadline import Deadline
    from gptport_client._flow import Flow, Pieces
    from gptport_client._params import SamplingParams
    from gptport_client._processors import Processor
    from gptport_client._sampling import Logits
    from gptport_client._served import ServedModel, StepTransport
    from gptport_client._tokenizer_source import TokenizerSource


class ClientAnswer:
    """The answer that this client makes of the step model's logits. The sequence is ended on the server however this ends."""

    def __init__(
        self,
        model: ServedModel,
        tokenizers: TokenizerSource,
        prompt: str | tuple[int, ...],
        params: SamplingParams,
        processors: Sequence[Processor],
        transport: StepTransport,
        deadline: Deadline,
        request_id: str,
    ) -> None:
        self.request_id = request_id
        self._model = model
        self._tokenizers = tokenizers
        self._prompt = prompt
        self._params = params
        self._processors = processors
        self._transport = transport
        self._deadline = deadline
        self._cancelled = False

    def cancel(self) -> None:
        """Stop before the next token."""
        self._cancelled = True

    def pieces(self) -> Pieces:
        """The chunks, as the loop completes them."""
        try:
            yield from self._loop()
        except ProtocolError as error:
            raise ProtocolError(str(error), self.request_id) from error

    def _loop(self) -> Pieces:
        config = yield from self._model.step_config(self._deadline, self.request_id, self._transport)
        tokenizer = yield from self._tokenizers.get(config, self._deadline, self.request_id)
        ids = tokenizer.encode(self._prompt) if isinstance(self._prompt, str) else self._prompt
        generation = Generation(ids, self._params, self._processors, config, tokenizer)
        sequence = StepSequence(self._model.transport, config, self.request_id)
        try:
            if self._params.prompt_logprobs is not None:
                generation.score = yield from self._score(sequence, ids, self._params.prompt_logprobs)
                generation.pending = ids[-1:]
            if self._params.max_tokens == 0:
                yield generation.end_unanswered()
                return
            logits = yield from self._append(sequence, generation)
            while True:
                chunk = generation.accept(logits)
                if generation.finished:
                    break
                if chunk is not None:
                    yield chunk
                logits = yield from self._append(sequence, generation)
        finally:
            sequence.end()
        if chunk is not None:
            yield chunk

    def _score(self, sequence: StepSequence, ids: tuple[int, ...], top: int) -> Flow[Score]:
        """How likely each of `ids` is; all but the last are appended, a request for each."""
        found = []
        for place, (token, following) in enumerate(pairwise(ids), 2):
            self._check_cancelled()
            end = self._params.max_tokens == 0 and place == len(ids)
            logits = yield from sequence.append((token,), self._deadline, end=end)
            found.append(token_logprob(logits, following, top))
        return Score(ids, tuple(each.logprob for each in found), tuple(each.top for each in found))

    def _append(self, sequence: StepSequence, generation: Generation) -> Flow[Logits]:
        self._check_cancelled()
        return (yield from sequence.append(generation.pending, self._deadline, end=generation.last))

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise Cancelled("the stream was closed", self.request_id)
