"""The client for callers that await."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from gptport_client._beam_search import Beam, BeamOptions
from gptport_client._core import Asked, Core, Loop
from gptport_client._endpoint import TLS, Endpoint, read_endpoint
from gptport_client._flow import run_async
from gptport_client._many import Items, Outcome, check_many, many_async
from gptport_client._model import ModelConfig, ModelInfo, check_model_name
from gptport_client._progress import Progress
from gptport_client._retry import Retry
from gptport_client._score import asked_score
from gptport_client._session import AsyncSession
from gptport_client._stream import AsyncStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import tokenizers

    from gptport_client._metrics import Metrics
    from gptport_client._params import SamplingOptions, SamplingParams
    from gptport_client._processors import Processor
    from gptport_client._prompt import Message, Prompt
    from gptport_client._results import Result
    from gptport_client._score import Score
    from gptport_client._served import StepTransport
    from gptport_client._stream import Answer
    from gptport_client._text import TextOffsets
    from gptport_client._transport import AsyncTransport


class AsyncClient:
    """`Client` for asyncio: the same arguments, methods and errors.

    Safe from several tasks of one event loop; they share one connection. Use it as an async context manager, or
    await `aclose()`. Cancelling a task that waits for an answer cancels the request on the server.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        model: str,
        tokenizer: str | Path | tokenizers.Tokenizer | None = None,
        tls: TLS | None = None,
        headers: Mapping[str, str] | None = None,
        retry: Retry | None = None,
        metrics_url: str | None = None,
        transport: AsyncTransport | None = None,
    ) -> None:
        check_model_name(model)
        endpoint = read_endpoint(url, tls, headers)
        self.model = model
        self._transport: AsyncTransport = transport or _transport(endpoint)
        self._core = Core(
            self._transport, model, tokenizer, retry or Retry(), metrics_url or endpoint.metrics_url
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """See `Client.close`."""
        await self._transport.close()

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        loop: Loop = "server",
        processors: Sequence[Processor] = (),
        transport: StepTransport = "auto",
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Result:
        """See `Client.generate`."""
        asked = Asked.checked(params, options, timeout, loop, processors, transport=transport)
        return await _result(self._core.generate(prompt, asked))

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        n: int = 1,
        loop: Loop = "server",
        processors: Sequence[Processor] = (),
        transport: StepTransport = "auto",
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AsyncStream:
        """See `Client.stream`; for `async for`, inside of the event loop."""
        asked = Asked.checked(params, options, timeout, loop, processors, n, transport)
        return AsyncStream(self._core.generate(prompt, asked))

    async def samples(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        n: int,
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> tuple[Result, ...]:
        """See `Client.samples`."""
        asked = Asked.checked(params, options, timeout, n=n)
        return await _results(self._core.generate(prompt, asked))

    async def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        loop: Loop = "server",
        processors: Sequence[Processor] = (),
        transport: StepTransport = "auto",
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Result:
        """See `Client.chat`."""
        return await _result(
            self._core.chat(
                messages, Asked.checked(params, options, timeout, loop, processors, transport=transport)
            )
        )

    def chat_stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        n: int = 1,
        loop: Loop = "server",
        processors: Sequence[Processor] = (),
        transport: StepTransport = "auto",
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AsyncStream:
        """See `Client.chat_stream`; for `async for`, inside of the event loop."""
        return AsyncStream(
            self._core.chat(messages, Asked.checked(params, options, timeout, loop, processors, n, transport))
        )

    def generate_many(
        self,
        prompts: Items,
        params: SamplingParams | None = None,
        *,
        concurrency: int = 16,
        progress: bool = False,
        loop: Loop = "server",
        processors: Sequence[Processor] = (),
        transport: StepTransport = "auto",
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AsyncIterator[Outcome]:
        """See `Client.generate_many`; for `async for`. The generator of prompts may be an async one."""
        check_many(prompts, concurrency)
        asked = Asked.checked(params, options, timeout, loop, processors, transport=transport)
        return many_async(
            prompts,
            lambda prompt: _result(self._core.one_of_many(prompt, asked)),
            concurrency,
            Progress(prompts, shown=progress),
        )

    async def beam_search(
        self,
        prompt: Prompt,
        *,
        beams: int = 4,
        max_tokens: int = 256,
        length_penalty: float = 1.0,
        processors: Sequence[Processor] = (),
        transport: StepTransport = "auto",
        timeout: float | None = None,
        loop: Loop = "client",
    ) -> tuple[Beam, ...]:
        """See `Client.beam_search`."""
        options = BeamOptions(beams, max_tokens, length_penalty)
        return await run_async(self._core.beam_search(prompt, options, processors, timeout, loop, transport))

    async def model_config(self) -> ModelConfig:
        """See `Client.model_config`."""
        return await run_async(self._core.model_config())

    async def tokenize(self, text: str) -> tuple[int, ...]:
        """See `Client.tokenize`."""
        return await run_async(self._core.tokenize(text))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `Client.detokenize`."""
        return await run_async(self._core.detokenize(token_ids))

    async def token_texts(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """See `Client.token_texts`."""
        return await run_async(self._core.token_texts(token_ids))

    async def text_offsets(self, prompt: Sequence[int] = ()) -> TextOffsets:
        """See `Client.text_offsets`."""
        return await run_async(self._core.text_offsets(prompt))

    async def adapters(self) -> tuple[str, ...]:
        """See `Client.adapters`."""
        return await run_async(self._core.adapters())

    async def score(
        self,
        text: Prompt,
        *,
        top: int = 0,
        loop: Loop = "server",
        timeout: float | None = None,
        transport: StepTransport = "auto",
    ) -> Score:
        """See `Client.score`."""
        return asked_score(await _result(self._core.score(text, top, loop, timeout, transport)))

    def session(self, *, transport: StepTransport = "auto") -> AsyncSession:
        """See `Client.session`."""
        return AsyncSession(self._core.session(transport))

    async def wait_until_ready(self, timeout: float | None = 60.0, *, loop: Loop = "server") -> None:
        """See `Client.wait_until_ready`."""
        await run_async(self._core.wait_until_ready(timeout, loop))

    async def models(self) -> tuple[ModelInfo, ...]:
        """See `Client.models`."""
        return await run_async(self._core.models())

    async def metrics(self) -> Metrics:
        """See `Client.metrics`."""
        return await run_async(self._core.metrics())


async def _result(answer: Answer) -> Result:
    return (await _results(answer))[0]


async def _results(answer: Answer) -> tuple[Result, ...]:
    async with AsyncStream(answer) as stream:
        async for _ in stream:
            pass
        return stream.results


def _transport(endpoint: Endpoint) -> AsyncTransport:
    if endpoint.protocol == "http":
        from gptport_client._http import AsyncHttpTransport  # few need it

        return AsyncHttpTransport(endpoint)
    from gptport_client._grpc_aio import AsyncGrpcTransport  # the import costs 100 ms

    return AsyncGrpcTransport(endpoint)
