"""What a request has to pass before it waits: its prompt becomes tokens, and what cannot be answered is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptport_backend.answers import Answers
from gptport_backend.beams import BeamSearch
from gptport_backend.errors import RequestError
from gptport_backend.generation import Generation
from gptport_backend.request import check_prompt_characters, check_prompt_length, check_token_ids

if TYPE_CHECKING:
    from gptport_backend.adapters import Adapters
    from gptport_backend.generation import Vocabulary
    from gptport_backend.kv_cache import KVCache
    from gptport_backend.manifest import Manifest
    from gptport_backend.metrics import Tally
    from gptport_backend.request import GenerationRequest
    from gptport_backend.sequence import Sink


class Intake:
    """Checks requests against the model, its adapters, `max_rows` and the cache; may be used from any thread."""

    def __init__(
        self,
        manifest: Manifest,
        vocabulary: Vocabulary,
        adapters: Adapters,
        cache: KVCache,
        max_rows: int,
        tally: Tally,
    ) -> None:
        self._manifest = manifest
        self._vocabulary = vocabulary
        self._adapters = adapters
        self._cache = cache
        self._max_rows = max_rows
        self._tally = tally

    def prepare(self, request: GenerationRequest, sink: Sink) -> list[Generation]:
        """A generation for each of its answers, whose responses go to `sink`; RequestError if it cannot be answered.

        All but the first will find the prompt computed.
        """
        prompt = request.token_ids if request.token_ids is not None else self._encode(request)
        check_token_ids("input_ids", prompt, self._manifest.vocab_size)
        biased = (token for token, _ in request.sampling.logit_bias)
        check_token_ids("logit_bias_ids", biased, self._manifest.vocab_size)
        check_token_ids("stop_token_ids", request.stop_token_ids, self._manifest.vocab_size)
        check_prompt_length(len(prompt), request.max_tokens, self._manifest.max_length, self._manifest.name)
        limit = min(request.max_tokens, self._manifest.max_length - len(prompt))
        adapter = self._adapters.find(request.lora_name)
        answers = Answers(sink, request.n, self._tally, stream=request.stream)
        if request.beam_width > 1:
            self._check_beams(request.beam_width, len(prompt) + limit)
            return [BeamSearch(request, prompt, limit, self._vocabulary, answers, adapter)]
        return [
            Generation(request, prompt, limit, self._vocabulary, answers, index, adapter)
            for index in range(request.n)
        ]

    def _check_beams(self, width: int, length: int) -> None:
        if width > self._max_rows:
            raise RequestError(f"beam_width is {width}; max_batch_size of this model is {self._max_rows}")
        if not self._cache.fits(width, length):
            raise RequestError(
                f"beam_width is {width}; so many sequences of {length} tokens do not fit into the {self._cache.budget} "
                "bytes of the KV cache: ask for fewer beams or a smaller max_tokens"
            )

    def _encode(self, request: GenerationRequest) -> tuple[int, ...]:
        """The tokens of a text, or of a conversation, whose template writes the special tokens itself."""
        field, text = "text_input", request.text
        if request.messages is not None:
            field = "messages"
            text = self._vocabulary.chat.prompt(request.messages, request.chat_template_kwargs)
        assert text is not None
        longest = self._vocabulary.longest_token
        check_prompt_characters(field, text, self._manifest.max_length, longest, self._manifest.name)
        return self._vocabulary.encode(text, special_tokens=request.messages is None)
