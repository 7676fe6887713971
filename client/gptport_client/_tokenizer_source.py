"""Finds the tokenizer of a model: given by the caller, kept from before, or fetched from the server."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from gptport_client._errors import InvalidRequest, ModelNotFound, ProtocolError, ServerNotReady
from gptport_client._tokenizer import TOKENIZER_FILE, Tokenizer, TokenizerCache, parse_tokenizer

if TYPE_CHECKING:
    from gptport_client._deadline import Deadline
    from gptport_client._flow import Flow
    from gptport_client._model import ModelConfig
    from gptport_client._served import ServedModel


class TokenizerSource:
    """The tokenizers of a text model, by the hash that the step model's configuration names.

    Who asks at once, before the first has an answer, fetches too; that does no harm.
    """

    def __init__(self, model: ServedModel, given: Tokenizer | None, cache: TokenizerCache) -> None:
        self._model = model
        self._given = given
        self._cache = cache
        self._parsed: dict[str, Tokenizer] = {}

    def get(self, config: ModelConfig, deadline: Deadline, request_id: str) -> Flow[Tokenizer]:
        """The tokenizer for the step model of `config`.

        Raises:
            ModelNotFound: it has to be fetched, but the server has no text model to fetch it from.
            ProtocolError: what the server sent has another hash than its configuration says.
        """
        if self._given is not None:
            return self._given
        sha256 = config.tokenizer_sha256
        if not sha256:
            raise InvalidRequest(
                f"model {config.name!r} names no tokenizer; pass tokenizer= to the client", request_id
            )
        if sha256 not in self._parsed:
            content = self._cache.read(sha256) or (yield from self._fetch(sha256, deadline, request_id))
            self._parsed[sha256] = parse_tokenizer(content, f"of {self._model.name}")
        return self._parsed[sha256]

    def _fetch(self, sha256: str, deadline: Deadline, request_id: str) -> Flow[bytes]:
        name = self._model.name
        try:
            content = yield from self._model.file(TOKENIZER_FILE, deadline, request_id)
        except (ModelNotFound, ServerNotReady) as error:
            raise type(error)(
                f"no tokenizer for the client's loop: it would come from the text model {name!r}, "
                f"which the server does not serve; pass tokenizer= (a tokenizer.json) to the client. {error}"
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise ProtocolError(
                f"the tokenizer of {name!r} has the sha256 {found}, the step model expects {sha256}: "
                "the two models are not from one export; export them again or pass tokenizer=",
                request_id,
            )
        self._cache.write(content)
        return content
