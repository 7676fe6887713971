"""The client: validates, picks the loop, and hands out streams and results."""

from __future__ import annotations

import math
import threading
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, TypeAlias

from gptport_client._deadline import Deadline
from gptport_client._errors import DeadlineExceeded, GptportError, InvalidRequest, ServerNotReady
from gptport_client._generation import Generation
from gptport_client._loop import client_loop, server_loop
from gptport_client._model import ModelInfo, check_model_name, read_config, step_model
from gptport_client._params import SamplingParams, check_timeout
from gptport_client._prompt import Prompt, check_prompt
from gptport_client._stream import Stream, collect
from gptport_client._tokenizer import TokenizerCache, read_tokenizer
from gptport_client._tokenizer_source import TokenizerSource
from gptport_client._transport import GrpcTransport, Transport
from gptport_client._wire import text_request

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import tokenizers

    from gptport_client._results import Result

Loop: TypeAlias = Literal["server", "client"]

ASK_TIMEOUT = 10.0  # seconds for a question that a server answers at once
POLL_INTERVAL = 0.1


class Client:
    """Generates text with one model on a Triton that serves what gptport exported.

    Safe from several threads; they share one connection. Use it as a context manager, or `close()` it.

    Args:
        url: `host:port` of the server's gRPC endpoint.
        model: the text model's name; its step model is `{model}_step`.
        tokenizer: for `loop="client"`: path of a tokenizer.json or of a directory with one, or a
            `tokenizers.Tokenizer`. Without it the text model is asked for its own, and it is kept in the
            cache directory (`$XDG_CACHE_HOME/gptport/tokenizers`).
        transport: carries the requests; gRPC to `url` if not given. It is closed with the client.

    Raises:
        InvalidRequest: `model`, `url` or `tokenizer` is wrong. Nothing is sent yet: a server that does not
        answer shows
            with the first request.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        model: str,
        tokenizer: str | Path | tokenizers.Tokenizer | None = None,
        transport: Transport | None = None,
    ) -> None:
        check_model_name(model)
        _check_url(url)
        given = None if tokenizer is None else read_tokenizer(tokenizer)
        self.model = model
        self._transport: Transport = transport or GrpcTransport(url)
        self._tokenizers = TokenizerSource(self._transport, model, given, TokenizerCache())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what still runs and close the connection; may be called twice."""
        self._transport.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | tuple[str, ...] | list[str] = (),
        loop: Loop = "server",
        timeout: float | None = None,
    ) -> Result:
        """Continue a prompt, and wait for the whole answer.

        Args:
            prompt: a text, as is (no chat template), or the ids of its tokens.
            max_tokens, temperature, top_k, top_p, seed, stop: see `SamplingParams`.
            loop: `server` asks the text model (continuous batching); `client` runs the loop here, against the
            step
                model. For the same seed both give the same tokens.
            timeout: seconds for everything, connecting included; None is no limit.

        Raises:
            GptportError: see the tree in `gptport_client._errors`; InvalidRequest before anything is sent.
        """
        started = time.monotonic()
        with self.stream(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
            loop=loop,
            timeout=timeout,
        ) as stream:
            return collect(stream, started)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | tuple[str, ...] | list[str] = (),
        loop: Loop = "server",
        timeout: float | None = None,
    ) -> Stream:
        """Continue a prompt, piece by piece; the arguments are those of `generate`.

        The chunks' texts put together are the text that `generate` returns. Leaving the stream early
        cancels the request on the server.
        """
        checked = check_prompt(prompt)
        params = SamplingParams(max_tokens, temperature, top_k, top_p, seed, stop)
        check_timeout(timeout)
        _check_loop(loop)
        start = self._server_stream if loop == "server" else self._client_stream
        return start(checked, params, Deadline(timeout), uuid.uuid4().hex)

    def wait_until_ready(self, timeout: float | None = 60.0, *, loop: Loop = "server") -> None:
        """Wait until the server takes requests for the model that `loop` uses; None waits for ever.

        Raises:
            ServerNotReady: it does not after `timeout` seconds; the message has the last reason.
        """
        check_timeout(timeout)
        _check_loop(loop)
        deadline = Deadline(timeout)
        model = self.model if loop == "server" else step_model(self.model)
        last = "no answer yet"
        with suppress(DeadlineExceeded):
            while reason := self._unready(model, min(deadline.remaining() or math.inf, 1.0)):
                last = reason
                time.sleep(POLL_INTERVAL)
            return
        raise ServerNotReady(f"{self._transport.url} is not ready for {model!r} after {timeout} s: {last}")

    def models(self) -> tuple[ModelInfo, ...]:
        """The models in the server's repository, also those that are not ready."""
        index = self._transport.repository(ASK_TIMEOUT)
        return tuple(
            ModelInfo(entry.name, entry.version, entry.state == "READY", entry.reason) for entry in index
        )

    def _unready(self, model: str, timeout: float) -> str | None:
        try:
            if not self._transport.server_ready(timeout):
                return "the server is starting or ending"
            if not self._transport.model_ready(model, timeout):
                return "the model is loading, failed to load or does not exist; models() and the log say more"
        except InvalidRequest:  # the client is closed
            raise
        except GptportError as error:
            return str(error)
        return None

    def _server_stream(
        self, prompt: str | tuple[int, ...], params: SamplingParams, deadline: Deadline, request_id: str
    ) -> Stream:
        request = text_request(self.model, request_id, prompt, params, stream=True)
        call = self._transport.stream(request, deadline.remaining(request_id))
        return Stream(server_loop(call, request_id), call.cancel, request_id)

    def _client_stream(
        self, prompt: str | tuple[int, ...], params: SamplingParams, deadline: Deadline, request_id: str
    ) -> Stream:
        left = deadline.remaining(request_id)
        answer = self._transport.model_config(step_model(self.model), ASK_TIMEOUT if left is None else left)
        config = read_config(answer)
        tokenizer = self._tokenizers.get(config, deadline, request_id)
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        generation = Generation(ids, params, config, tokenizer)
        stop = threading.Event()
        chunks = client_loop(self._transport, generation, config, deadline, stop, request_id)

        def cancel() -> None:
            stop.set()
            with suppress(ValueError):  # another thread runs it: that one sees `stop` before its next token
                chunks.close()

        return Stream(chunks, cancel, request_id)


def _check_loop(loop: str) -> None:
    if loop not in ("server", "client"):
        raise InvalidRequest(f"loop is {loop!r}; give 'server' or 'client'")


def _check_url(url: str) -> None:
    if not isinstance(url, str) or not url:
        raise InvalidRequest(f"url is {url!r}; give host:port of the server's gRPC endpoint")
    if "://" in url:
        raise InvalidRequest(
            f"url is {url!r}; give host:port of the gRPC endpoint (8001 by default), without a scheme"
        )
