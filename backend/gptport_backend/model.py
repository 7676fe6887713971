"""Triton's entry to the backend `gptport`: requests in, responses out."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from gptport_backend import manifest as manifests
from gptport_backend.chat import CONFIG_FILE, TEMPLATE_FILE, Chat
from gptport_backend.engine import Engine, EngineOptions
from gptport_backend.errors import BackendError, LoadError, RequestError
from gptport_backend.generation import Vocabulary
from gptport_backend.metrics import TritonPublisher
from gptport_backend.orphan import end_with_parent
from gptport_backend.outbox import Outbox
from gptport_backend.parameters import PARAMETERS, complete
from gptport_backend.request import parse, unknown_input
from gptport_backend.runner import Runner, RunnerOptions
from gptport_backend.sequence import Piece
from gptport_backend.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_backend.likelihood import Logprobs

SHARED_FILES = ("tokenizer.json", CONFIG_FILE, TEMPLATE_FILE, "generation_config.json")
ADAPTERS = "adapters"  # what `file` says for the list of their names
# Triton unloads a model when its requests are answered, so that nothing is left to wait for, unless the server has
# crashed: then nobody reads the answers anymore, and sending one may never return.
DRAIN_SECONDS = 0.0
SEND_SECONDS = 2.0

log = logging.getLogger(__name__)


class TritonPythonModel:
    """One instance of a text model."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Tell Triton what the model takes and gives: what this backend knows, whenever the model was exported."""
        complete(config)
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model; whatever is raised becomes Triton's status of the model."""
        end_with_parent()
        config = json.loads(args["model_config"])
        self._version_dir = Path(args["model_repository"]) / args["model_version"]
        manifest = manifests.read(self._version_dir)
        options = EngineOptions(
            **_integers(config, "max_batch_size", "max_prefill_tokens", "max_waiting", "kv_cache_bytes"),
            **_integers(config, "prefix_cache_bytes", least=0),
        )
        device = "cuda" if args["model_instance_kind"] == "GPU" else "cpu"
        runner_options = RunnerOptions(
            device, int(args["model_instance_device_id"]), **_integers(config, "threads")
        )
        with manifests.verifying(manifest, self._version_dir):
            runner = Runner(manifest, self._version_dir, runner_options, options.max_batch_size)
        vocabulary = Vocabulary.of(
            _tokenizer(self._version_dir), manifest.vocab_size, manifest.eos, Chat(self._version_dir)
        )
        publisher = TritonPublisher(pb_utils, args["model_name"])
        self._outbox = Outbox()
        self._watch = Watch()
        self._adapters = runner.adapters
        self._engine = Engine(manifest, runner, vocabulary, options, publisher)

    def execute(self, requests: list[Any]) -> None:
        """Hand each request to the engine; the answers come from its thread."""
        for request in requests:
            sender, request_id = request.get_response_sender(), str(request.request_id())
            sink = TritonSink(sender, self._outbox, self._watch, request_id)
            try:
                self._take(request, sink)
            except RequestError as error:
                sink.refuse(str(error), pb_utils.TritonError.INVALID_ARG)
            except BackendError as error:
                sink.refuse(str(error), pb_utils.TritonError.UNAVAILABLE)
            except Exception as error:
                log.exception("a request could not be taken")
                sink.fail(f"the request could not be taken: {error}")

    def finalize(self) -> None:
        """Stop the engine; what still runs fails."""
        self._engine.close(DRAIN_SECONDS)
        self._watch.close(SEND_SECONDS)
        self._outbox.close(SEND_SECONDS)

    def _take(self, request: Any, sink: TritonSink) -> None:
        file = _asked_file(request)
        if file is not None:
            sink.send((Piece(self._read_file(file), (), "stop", 0, 0),), final=True)
            return
        tensors = {}
        for parameter in PARAMETERS:
            tensor = pb_utils.get_input_tensor_by_name(request, parameter.name)
            if tensor is not None:
                tensors[parameter.name] = tensor.as_numpy()
        self._engine.submit(parse(tensors), sink)

    def _read_file(self, name: Any) -> str:
        if name == ADAPTERS:
            return json.dumps(self._adapters.names())
        if name not in SHARED_FILES:
            known = ", ".join((*SHARED_FILES, ADAPTERS))
            raise RequestError(f"file is {str(name)[:80]!r}; it must be one of {known}")
        try:
            return (self._version_dir / str(name)).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise RequestError(f"this model has no {name}") from error


class TritonSink:
    """The answers to one request on Triton's side."""

    def __init__(self, sender: Any, outbox: Outbox, watch: Watch, request_id: str) -> None:
        self._sender = sender
        self._outbox = outbox
        self._watched = watch.add(lambda: bool(sender.is_cancelled()))
        self._request_id = request_id
        self._arrived = time.monotonic()

    def send(self, pieces: tuple[Piece, ...], *, final: bool) -> None:
        """Send one response, with the final flag if it is the last one."""
        self._outbox.put(lambda: self._send(_response(pieces), final))
        for piece in pieces:
            if piece.finish_reason:
                self._log(_ended(piece))

    def fail(self, message: str) -> None:
        """End with an error of the server."""
        self.refuse(message, pb_utils.TritonError.INTERNAL)

    def refuse(self, message: str, status: Any) -> None:
        """End with an error of the given status."""
        error = pb_utils.InferenceResponse([], pb_utils.TritonError(message, status))
        self._outbox.put(lambda: self._send(error, final=True))
        self._log(f"error: {message}")

    def is_cancelled(self) -> bool:
        """True once the client has cancelled the request or is gone."""
        return self._watched.cancelled

    def _log(self, end: str) -> None:
        """How it ended, as a line of Triton's log, if that is verbose."""
        seconds = time.monotonic() - self._arrived
        line = f"request {self._request_id!r} of gptport: {end}, after {seconds:.3f} s"
        self._outbox.put(lambda: pb_utils.Logger.log_verbose(line))

    def _send(self, response: Any, final: bool) -> None:
        if final:
            self._watched.end()
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)


def _asked_file(request: Any) -> Any:
    """The parameter `file`, if it is there.

    Over HTTP, Triton makes a parameter of each value whose name is no input's; Triton 24.10 also of the request's `id`.
    """
    try:
        found: dict[str, Any] = json.loads(request.parameters() or "{}")
    except UnicodeDecodeError as error:
        raise RequestError("the request has a parameter whose name or value is not UTF-8") from error
    unknown = found.keys() - {"file", "id"}
    if unknown:
        raise unknown_input(min(unknown))
    return found.get("file")


def _ended(piece: Piece) -> str:
    first = "none" if piece.first_token is None else f"{piece.first_token:.3f} s"
    return (
        f"{piece.finish_reason}, {piece.num_input_tokens} tokens in, {piece.num_output_tokens} out, "
        f"first token {first}"
    )


def _response(pieces: tuple[Piece, ...]) -> Any:
    """A value of each answer; what is a list, one behind the other."""
    ids = [token for piece in pieces for token in piece.token_ids]
    counts = [piece.num_output_tokens for piece in pieces]
    return pb_utils.InferenceResponse(
        [
            *_logprobs([each for piece in pieces for each in piece.logprobs]),
            *_scored_prompt(pieces[0]),
            *_cumulated([piece.logprob for piece in pieces if piece.logprob is not None]),
            _bytes("text_output", [piece.text for piece in pieces]),
            pb_utils.Tensor("index", np.array([piece.index for piece in pieces], np.int32)),
            pb_utils.Tensor("output_ids", np.array(ids, np.int32)),
            _bytes("finish_reason", [piece.finish_reason for piece in pieces]),
            pb_utils.Tensor("num_input_tokens", np.array([pieces[0].num_input_tokens], np.uint32)),
            pb_utils.Tensor("num_output_tokens", np.array(counts, np.uint32)),
        ]
    )


def _logprobs(logprobs: list[Logprobs]) -> list[Any]:
    """Nothing unless they were asked for."""
    if not logprobs:
        return []
    return _tensors(logprobs, "output_log_probs", "top_log_prob_ids", "top_log_probs")


def _cumulated(logprobs: list[float]) -> list[Any]:
    return [pb_utils.Tensor("cum_log_probs", np.array(logprobs, np.float32))] if logprobs else []


def _scored_prompt(piece: Piece) -> list[Any]:
    if piece.prompt is None:
        return []
    ids = pb_utils.Tensor("prompt_ids", np.array(piece.prompt.token_ids, np.int32))
    names = ("prompt_log_probs", "prompt_top_log_prob_ids", "prompt_top_log_probs")
    return [ids, *_tensors(piece.prompt.logprobs, *names)]


def _tensors(logprobs: Sequence[Logprobs], chosen: str, top_ids: str, top: str) -> list[Any]:
    shape = (len(logprobs), len(logprobs[0].top) if logprobs else 0)
    return [
        pb_utils.Tensor(chosen, np.array([each.token for each in logprobs], np.float32)),
        pb_utils.Tensor(top_ids, np.array([each.top_ids for each in logprobs], np.int32).reshape(shape)),
        pb_utils.Tensor(top, np.array([each.top for each in logprobs], np.float32).reshape(shape)),
    ]


def _bytes(name: str, texts: list[str]) -> Any:
    return pb_utils.Tensor(name, np.array([text.encode() for text in texts], np.object_))


def _integers(config: dict[str, Any], *names: str, least: int = 1) -> dict[str, int]:
    """Those of the parameters `names` of config.pbtxt that are there, as whole numbers from `least` on."""
    values = {}
    for name in names:
        text = config.get("parameters", {}).get(name, {}).get("string_value")
        if text is None:
            continue
        if not text.isdecimal() or int(text) < least:
            raise LoadError(
                f"the parameter {name} in config.pbtxt is {text!r}; it must be a whole number, {least} or more"
            )
        values[name] = int(text)
    return values


def _tokenizer(version_dir: Path) -> Tokenizer:
    path = version_dir / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise LoadError(f"{path} cannot be read as a tokenizer: {error}; export the model again") from error
    tokenizer.no_truncation()  # some files still have what training set; a prompt is taken whole or refused
    tokenizer.no_padding()
    return tokenizer
