"""The client for callers that block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from gptport_client._beam_search import Beam, BeamOptions
from gptport_client._core import Asked, Core, Loop
from gptport_client._endpoint import TLS, Endpoint, read_endpoint
from gptport_client._flow import run
from gptport_client._grpc import GrpcTransport
from gptport_client._many import Outcome, Request, check_many, many
from gptport_client._model import ModelConfig, ModelInfo, check_model_name
from gptport_client._progress import Progress
from gptport_client._retry import Retry
from gptport_client._score import asked_score
from gptport_client._session import Session
from gptport_client._stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    from gptport_client._transport import Transport


class Client:
    """Generates text with one model on a Triton that serves what gptport exported.

    Safe from several threads; they share one connection. Use it as a context manager, or `close()` it.

    Args:
        url: `host:port` of the server's gRPC endpoint, or `http://host:port` of its HTTP endpoint; with TLS,
            `grpcs://` and `https://`.
        model: the text model's name; its step models are `{model}_step` and `{model}_kv`.
        tokenizer: for `loop="client"`: path of a tokenizer.json or of a directory with one, or a
            `tokenizers.Tokenizer`. Without it the text model is asked for its own, and it is kept in the
            cache directory (`$XDG_CACHE_HOME/gptport/tokenizers`).
        tls: how the connection is secured, where the system's certificates are not what is wanted.
        headers: sent with each request: a token, or the key of a restricted API.
        retry: how often a request is sent again that failed before anything of its answer came, because the
            server could not be reached, was not ready or had too many requests. A stream is never replayed.
        metrics_url: of the server's metrics endpoint; `http://HOST:8002/metrics` if not given.
        transport: carries the requests instead of a connection to `url`. It is closed with the client.

    Raises:
        InvalidRequest: an argument is wrong. Nothing is sent yet: a server that does not answer shows with the
            first request.
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
        transport: Transport | None = None,
    ) -> None:
        check_model_name(model)
        endpoint = read_endpoint(url, tls, headers)
        self.model = model
        self._transport: Transport = transport or _transport(endpoint)
        self._core = Core(
            self._transport, model, tokenizer, retry or Retry(), metrics_url or endpoint.metrics_url
        )

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
        params: SamplingParams | None = None,
        *,
        loop: Loop = "server",
        processors: Sequence[Processor] = (),
        transport: StepTransport = "auto",
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Result:
        """Continue a prompt, and wait for the whole answer.

        Args:
            prompt: a text, as is (no chat template), or the ids of its tokens.
            params: how tokens are chosen and when generation ends.
            loop: `server` asks the text model (continuous batching); `client` runs the loop here, against the
                step model. For the same seed both give the same tokens.
            processors: for `loop="client"`: functions of token ids `[n]` and logits `[vocab]` that return logits.
            transport: for `loop="client"`: who holds keys and values; see `session`.
            timeout: seconds for everything, connecting included; None is no limit. The server is told, and does not work longer
                for a client that is lost.
            options: fields of `SamplingParams`, which replace those of `params`.

        Raises:
            GptportError: see the tree in `gptport_client._errors`; InvalidRequest before anything is sent.
        """
        asked = Asked.checked(params, options, timeout, loop, processors, transport=transport)
        return _result(self._core.generate(prompt, asked))

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
    ) -> Stream:
        """Continue a prompt, piece by piece; the arguments are those of `generate`.

        The chunks' texts put together are the text that `generate` returns. Leaving the stream early
        cancels the request on the server. With `n` there are several answers, as `samples` gives them: a chunk
        has the `index` of its own.
        """
        asked = Asked.checked(params, options, timeout, loop, processors, n, transport)
        return Stream(self._core.generate(prompt, asked))

    def samples(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        n: int,
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> tuple[Result, ...]:
        """Continue a prompt in `n` ways, whose keys and values are computed once; one result for each.

        The one with the index i is what `generate` gives for the seed `seed + i`. The other arguments are those of `generate`,
        for the server's loop.
        """
        asked = Asked.checked(params, options, timeout, n=n)
        return _results(self._core.generate(prompt, asked))

    def chat(
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
        """Answer a conversation, in the model's own template, which is fetched from the server; needs jinja2.

        Args:
            messages: dicts with `role` (`system`, `user` or `assistant`) and `content`, oldest first.
            params, loop, processors, transport, timeout, options: as for `generate`.

        Raises:
            InvalidRequest: the model has no template, or its template takes no such messages.
        """
        return _result(
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
    ) -> Stream:
        """Answer a conversation, piece by piece; the arguments are those of `chat`."""
        return Stream(
            self._core.chat(messages, Asked.checked(params, options, timeout, loop, processors, n, transport))
        )

    def generate_many(
        self,
        prompts: Iterable[Prompt | Request],
        params: SamplingParams | None = None,
        *,
        concurrency: int = 16,
        progress: bool = False,
        loop: Loop = "server",
        processors: Sequence[Processor] = (),
        transport: StepTransport = "auto",
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Outcome]:
        """Continue many prompts; the outcomes come in the prompts' order, each a result or its error.

        Args:
            prompts: a list or a generator, from which prompts are drawn as they are needed. A `Request` among them
                may be a conversation, and has parameters of its own.
            concurrency: prompts under way at a time.
            progress: show a bar on standard error, if that is a terminal.
            timeout: seconds for each prompt.
            params, loop, processors, transport, options: as for `generate`.
        """
        check_many(prompts, concurrency)
        asked = Asked.checked(params, options, timeout, loop, processors, transport=transport)
        return many(
            prompts,
            lambda prompt: _result(self._core.one_of_many(prompt, asked)),
            concurrency,
            Progress(prompts, shown=progress),
        )

    def beam_search(
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
        """The likeliest continuations of a prompt that beam search finds, best first.

        Args:
            prompt, processors, transport, timeout: as for `generate`.
            beams: continuations kept at a time, and at most given; each is a sequence on the server, 1 to 64.
            max_tokens: most new tokens.
            length_penalty: continuations are compared by log-probability / length ** length_penalty.
            loop: `client`, a request a token and beam; or `server`, one request, whose 2 or more beams run beside other answers.
                Both find the same; at the end of `timeout`, the server's gives the best so far.
        """
        options = BeamOptions(beams, max_tokens, length_penalty)
        return run(self._core.beam_search(prompt, options, processors, timeout, loop, transport))

    def model_config(self) -> ModelConfig:
        """What the model's configuration says: its length, its vocabulary and the tokens that end a text."""
        return run(self._core.model_config())

    def tokenize(self, text: str) -> tuple[int, ...]:
        """The ids of a text's tokens, those included that the tokenizer puts around a text."""
        return run(self._core.tokenize(text))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return run(self._core.detokenize(token_ids))

    def token_texts(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Each token alone as text, special ones too; half a character is U+FFFD."""
        return run(self._core.token_texts(token_ids))

    def text_offsets(self, prompt: Sequence[int] = ()) -> TextOffsets:
        """Where in the text of the tokens behind a prompt's each begins, for answers whose tokens are marked in their text."""
        return run(self._core.text_offsets(prompt))

    def adapters(self) -> tuple[str, ...]:
        """The LoRA adapters that requests to the model can name, in order."""
        return run(self._core.adapters())

    def score(
        self,
        text: Prompt,
        *,
        top: int = 0,
        loop: Loop = "server",
        timeout: float | None = None,
        transport: StepTransport = "auto",
    ) -> Score:
        """How likely a text is: the log-probability of each token, given those before it.

        Args:
            text: a text, or the ids of its tokens, at least two.
            top: give the likeliest tokens in the place of each too, so many, 0 to 20.
            loop: `server` asks the text model, in one request; `client` the step model, a request a token.
            timeout, transport: as for `generate`.
        """
        return asked_score(_result(self._core.score(text, top, loop, timeout, transport)))

    def session(self, *, transport: StepTransport = "auto") -> Session:
        """A sequence of tokens on a step model, for a loop of your own. Nothing is sent yet.

        Args:
            transport: who holds keys and values: `state` is the server, on `{model}_step`; `shared_memory` and
                `cuda_shared_memory` is this client, on `{model}_kv`, in memory, or memory of the GPU, that it shares with a
                server on the same machine; `request` is this client, where `{model}_step` is a graph whose cache grows: they
                travel with each request. `auto` takes what fits where the model runs, if it can, else what `{model}_step` is.

        Raises:
            InvalidRequest, ModelNotFound: with the first request, if it has to be shared memory and cannot be.
        """
        return Session(self._core.session(transport))

    def wait_until_ready(self, timeout: float | None = 60.0, *, loop: Loop = "server") -> None:
        """Wait until the server takes requests for the model that `loop` uses; None waits for ever.

        Raises:
            ServerNotReady: it does not after `timeout` seconds; the message has the last reason.
        """
        run(self._core.wait_until_ready(timeout, loop))

    def models(self) -> tuple[ModelInfo, ...]:
        """The models in the server's repository, also those that are not ready."""
        return run(self._core.models())

    def metrics(self) -> Metrics:
        """What the server counts and measures now, from `metrics_url`."""
        return run(self._core.metrics())


def _result(answer: Answer) -> Result:
    return _results(answer)[0]


def _results(answer: Answer) -> tuple[Result, ...]:
    with Stream(answer) as stream:
        for _ in stream:
            pass
        return stream.results


def _transport(endpoint: Endpoint) -> Transport:
    if endpoint.protocol == "http":
        from gptport_client._http import HttpTransport  # few need it

        return HttpTransport(endpoint)
    return GrpcTransport(endpoint)
