"""Triton's entry to the backend `gptport`: requests in, responses out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from gptport_backend import manifest as manifests
from gptport_backend import model_config
from gptport_backend.chat import CONFIG_FILE, TEMPLATE_FILE, Chat
from gptport_backend.engine import Engine, EngineOptions
from gptport_backend.errors import BackendError, LoadError, RequestError
from gptport_backend.generation import Vocabulary
from gptport_backend.metrics import TritonPublisher
from gptport_backend.orphan import end_with_parent
from gptport_backend.outbox import Outbox
from gptport_backend.parameters import PARAMETERS
from gptport_backend.request import parse, unknown_input
from gptport_backend.runner import Runner, RunnerOptions
from gptport_backend.sequence import Piece
from gptport_backend.triton_sink import TritonSink
from gptport_backend.watch import Watch

SHARED_FILES = ("tokenizer.json", CONFIG_FILE, TEMPLATE_FILE, "generation_config.json")
ADAPTERS = "adapters"  # what `file` says for the list of their names
# Triton unloads a model when its requests are answered, so that nothing is left to wait for, unless the server has
# crashed: then nobody reads the answers anymore, and sending one may never return.
DRAIN_SECONDS = 0.0
SEND_SECONDS = 2.0
MOST_THREADS = 1024  # onnxruntime starts as many as it is told to, until nothing else runs on the machine

log = logging.getLogger(__name__)


class TritonPythonModel:
    """One instance of a text model."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Tell Triton what the model takes and gives: what this backend knows, whenever the model was exported."""
        model_config.check_batching(config.as_dict())
        model_config.complete(config)
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model; whatever is raised becomes Triton's status of the model."""
        end_with_parent()
        self._name = f"{args['model_name']}, version {args['model_version']}"
        logging.basicConfig(format=f"%(asctime)s %(levelname)s of {self._name}: %(message)s")
        config = json.loads(args["model_config"])
        self._version_dir = Path(args["model_repository"]) / args["model_version"]
        manifest = manifests.read(self._version_dir)
        device = "cuda" if args["model_instance_kind"] == "GPU" else "cpu"
        device_id = int(args["model_instance_device_id"])
        options = EngineOptions(
            **model_config.integers(
                config, "max_batch_size", "max_prefill_tokens", "max_waiting", "kv_cache_bytes"
            ),
            **model_config.integers(config, "prefix_cache_bytes", least=0),
            engines=model_config.instances(config, device, device_id),
        )
        runner_options = RunnerOptions(
            device,
            device_id,
            **model_config.integers(config, "threads", most=MOST_THREADS),
            sampler=model_config.sampler(config),
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
            sink = TritonSink(request, self._name, self._outbox, self._watch)
            try:
                self._take(request, sink)
            except RequestError as error:
                sink.refuse(str(error), pb_utils.TritonError.INVALID_ARG)
            except BackendError as error:
                sink.refuse(str(error), pb_utils.TritonError.UNAVAILABLE)
            except BaseException as error:  # a panic of tokenizers or llguidance is no Exception
                log.exception("request %r could not be taken", sink.request_id)
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
        self._engine.submit(parse(tensors, request.timeout()), sink)

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


def _tokenizer(version_dir: Path) -> Tokenizer:
    path = version_dir / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise LoadError(f"{path} cannot be read as a tokenizer: {error}; export the model again") from error
    tokenizer.no_truncation()  # some files still have what training set; a prompt is taken whole or refused
    tokenizer.no_padding()
    return tokenizer
