"""The routes of the gateway."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gptport_client import TLS, GptportError, ModelNotFound, SamplingParams
from gptport_gateway import asked as parse
from gptport_gateway.answers import Answers, Piece, Pieces
from gptport_gateway.errors import RequestError, status_and_body
from gptport_gateway.models import Models
from gptport_gateway.written import Writer, WrittenPrompt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from starlette.requests import Request

    from gptport_client import AsyncClient
    from gptport_gateway.asked import Asked
    from gptport_gateway.keys import Keys

T = TypeVar("T")
PAGE = Path(__file__).parent / "page"
MOST_BYTES = 8 * 2**20  # of a request
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class BrowserGone(Exception):  # noqa: N818 - named for what it says
    """Nobody waits for the answer any more."""


def application(
    url: str, keys: Keys, *, tls: TLS | None = None, headers: Mapping[str, str] | None = None
) -> Starlette:
    """The gateway in front of the Triton at `url` (its gRPC endpoint); `tls` and `headers` as for a client."""
    models = Models(url, tls, headers)
    endpoints = Endpoints(models)
    guarded = [
        Route("/v1/models", endpoints.list_models),
        Route("/v1/models/{name}", endpoints.show_model),
        Route("/v1/completions", endpoints.completions, methods=["POST"]),
        Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
    ]
    for route in guarded:
        route.app = _guard(route.app, keys)

    page = [
        _page_route("/", "index.html", "text/html"),
        _page_route("/chat.js", "chat.js", "text/javascript"),
        _page_route("/chat.css", "chat.css", "text/css"),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await models.close()

    return Starlette(
        routes=[*guarded, Route("/health", endpoints.health), *page],
        exception_handlers={
            HTTPException: _no_route,
            RequestError: _refuse,
            GptportError: _refuse,
            BrowserGone: _nobody,
        },
        lifespan=lifespan,
    )


class Endpoints:
    """What is behind the routes."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def health(self, _: Request) -> Response:
        """Whether the server behind answers."""
        await self._models.check()
        return JSONResponse({"status": "ok"})

    async def list_models(self, _: Request) -> Response:
        """The text models that are ready, and their adapters."""
        names = await self._models.listed()
        return JSONResponse({"object": "list", "data": [_model(name) for name in names]})

    async def show_model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        names = await self._models.listed()
        if name not in names:
            raise ModelNotFound(f"there is no model {name!r}; there are: {', '.join(names) or 'none'}")
        return JSONResponse(_model(name))

    async def completions(self, request: Request) -> Response:
        """Texts that go on."""
        return await self._answer(request, parse.completion(await _body(request)), chat=False)

    async def chat(self, request: Request) -> Response:
        """Conversations that go on."""
        return await self._answer(request, parse.chat(await _body(request)), chat=True)

    async def _answer(self, request: Request, asked: Asked, *, chat: bool) -> Response:
        client = await self._models.client(asked.model)
        prompts = () if chat else await _until_gone(request, _written(client, asked))
        answers = await _begin(client, asked, chat=chat)
        writer = Writer(asked, chat=chat, client=client, prompts=prompts)
        if not asked.stream:
            return JSONResponse(await writer.complete(await _until_gone(request, answers.results())))
        pieces = answers.pieces()
        first = await _until_gone(request, anext(pieces))  # what is wrong at once gets its HTTP status
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            _events(first, pieces, writer), headers=headers, media_type="text/event-stream"
        )


async def _begin(client: AsyncClient, asked: Asked, *, chat: bool) -> Answers:
    limit = (await client.model_config()).max_length if asked.unlimited else asked.params.max_tokens
    ask: Callable[..., Any] = client.chat_stream if chat else client.stream
    streams = [ask(prompt, asked.params, max_tokens=limit, n=asked.n) for prompt in asked.prompts]
    return Answers(streams, asked.n)


async def _written(client: AsyncClient, asked: Asked) -> tuple[WrittenPrompt, ...]:
    """What of each prompt its answers tell."""
    return tuple([await _written_prompt(client, asked, prompt) for prompt in asked.prompts])


async def _written_prompt(client: AsyncClient, asked: Asked, prompt: Any) -> WrittenPrompt:
    text, score = "", None
    ids: tuple[int, ...] = ()
    if asked.echo:
        text = prompt if isinstance(prompt, str) else await client.detokenize(prompt)
    if asked.params.logprobs is not None:
        ids = await client.tokenize(prompt) if isinstance(prompt, str) else tuple(prompt)
    if asked.echo and asked.params.logprobs is not None and asked.n > 1:  # else it comes with the answer
        params = SamplingParams(
            max_tokens=0, prompt_logprobs=asked.params.logprobs, lora_name=asked.params.lora_name
        )
        score = (await client.generate(prompt, params)).prompt_score
    return WrittenPrompt(text, ids, score)


async def _events(first: Piece, pieces: Pieces, writer: Writer) -> AsyncIterator[bytes]:
    """Server-sent events. The task that reads them is cancelled when the browser goes away."""
    async with aclosing(pieces):
        try:
            yield _event(await writer.piece(first.index, first.chunk))
            async for piece in pieces:
                yield _event(await writer.piece(piece.index, piece.chunk))
            if (last := writer.last()) is not None:
                yield _event(last)
            yield b"data: [DONE]\n\n"
        except GptportError as error:  # the status is long sent
            yield _event(status_and_body(error)[1])


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"


async def _until_gone(request: Request, answer: Awaitable[T]) -> T:
    """What `answer` gives; it is cancelled if the browser goes away before.

    Raises:
        BrowserGone: it did.
    """
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise BrowserGone
        return work.result()
    finally:
        gone.cancel()
        work.cancel()
        with suppress(asyncio.CancelledError, GptportError, BrowserGone):
            await work


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> dict[str, Any]:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise RequestError(f"the request has more than {MOST_BYTES} bytes; shorten it", status=413)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError("the request is no JSON object")
    return body


def _guard(app: Any, keys: Keys) -> Any:
    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        if keys.admit(headers.get(b"authorization", b"").decode("latin-1")):
            await app(scope, receive, send)
        else:
            error = RequestError(
                "the API key is missing or wrong; send Authorization: Bearer KEY", status=401
            )
            status, body = status_and_body(error)
            await JSONResponse(body, status, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    return guarded


async def _refuse(_: Request, error: Any) -> Response:
    status, body = status_and_body(error)
    return JSONResponse(body, status)


async def _no_route(request: Request, error: Any) -> Response:
    known = "/v1/models, /v1/completions and /v1/chat/completions"
    message = f"{request.method} {request.url.path} is nothing here; there are {known}"
    return await _refuse(request, RequestError(message, status=error.status_code))


async def _nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # which nobody sees; nginx's number for it


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "gptport"}


def _page_route(path: str, file: str, media_type: str) -> Route:
    content = (PAGE / file).read_bytes()

    async def page(_: Request) -> Response:
        return Response(content, headers=PAGE_HEADERS, media_type=media_type)

    return Route(path, page)
