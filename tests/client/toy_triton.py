"""A gRPC server that behaves as docs/protocol.md says, with a toy for a model; `python toy_triton.py` runs it alone.

The model is a deterministic function of the ids so far. What the text model answers is computed here in the plainest
way (everything decoded at once, everything sorted), so that the client's own loop has something to agree with.
"""

# ruff: noqa: ARG002, N802 - the methods are those of Triton's service
from __future__ import annotations

import hashlib
import threading
from concurrent import futures

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

import toy_growing
from toy_model import EOS, MAX_LENGTH, TEMPLATE, byte_level_tokenizer, next_logits, reference_token
from toy_regions import ToyRegions
from toy_wire import add_logprobs, add_output, failure, final_response, read_inputs, text_response


class ToyTriton(ToyRegions, service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves `toy` and `toy_step`, and `toy_kv` once it is among the models; the attributes below make it misbehave."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = byte_level_tokenizer()
        self.tokenizer_file = self.tokenizer.to_str().encode()
        self.vocab_size = self.tokenizer.get_vocab_size()
        self.models = {"toy", "toy_step"}
        self.grows: tuple[str, ...] = ()  # the inputs of toy_step beside its cache, if that grows
        self.cache_datatype = "FP32"  # of that cache
        self.ready = True
        self.max_length = MAX_LENGTH
        self.files = {
            "tokenizer.json": "",  # see tokenizer_file
            "tokenizer_config.json": '{"bos_token": null, "eos_token": {"content": "<eos>"}}',
            "chat_template.jinja": TEMPLATE,
        }
        self.delay = 0.0  # seconds before each token
        self.released = threading.Event()  # after which there is no delay
        self.error_after: tuple[int, str] | None = None  # after so many pieces, this error_message
        self.separate_final = False  # the final flag in a response of its own
        self.no_finish_reason = False
        self.eos_token_ids = str(EOS)
        self.refusals: list[tuple[grpc.StatusCode, str]] = []  # of the next streams
        self.metadata: dict[str, str] = {}  # of the last stream or step
        self.config: dict[
            str, str | None
        ] = {}  # parameters of the configuration that are otherwise; None: missing
        self.requests: list[service_pb2.ModelInferRequest] = []
        self.sequences: dict[int, list[int]] = {}
        self.steps: list[dict] = []
        self.cancelled = threading.Event()
        self.lock = threading.Lock()

    def serve(
        self, port: int = 0, credentials: grpc.ServerCredentials | None = None
    ) -> tuple[grpc.Server, int]:
        """Start; the server and its port."""
        server = grpc.server(futures.ThreadPoolExecutor(20))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, server)
        address = f"127.0.0.1:{port}"
        port = (
            server.add_insecure_port(address)
            if credentials is None
            else server.add_secure_port(address, credentials)
        )
        server.start()
        return server, port

    def ServerReady(self, request, context):
        return service_pb2.ServerReadyResponse(ready=self.ready)

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=request.name in self.models)

    def RepositoryIndex(self, request, context):
        index = service_pb2.RepositoryIndexResponse()
        for name in sorted(self.models):
            index.models.add(name=name, version="1", state="READY")
        index.models.add(name="broken", version="1", state="UNAVAILABLE", reason="no such file")
        return index

    def ModelConfig(self, request, context):
        if request.name not in self.models:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found"
            )
        response = service_pb2.ModelConfigResponse()
        response.config.name = request.name
        parameters = {
            "gptport_schema": "1",
            "gptport_kind": {"toy_step": "step", "toy_kv": "kv"}.get(request.name, "text"),
            "max_length": str(self.max_length),
            "vocab_size": str(self.vocab_size),
            "eos_token_ids": self.eos_token_ids,
            "bos_token_id": "",
            "tokenizer_sha256": hashlib.sha256(self.tokenizer_file).hexdigest(),
            **self.config,
        }
        if request.name == "toy_kv":
            self.describe(response.config)
        if request.name == "toy_step" and self.grows:
            parameters["gptport_kind"] = "growing"
            toy_growing.describe(response.config, self.grows, self.cache_datatype)
        for key, value in parameters.items():
            if value is None:
                continue
            response.config.parameters[key].string_value = value
        return response

    def ModelInfer(self, request, context):
        if request.model_name not in self.models:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.model_name}' is not found"
            )
        self.released.wait(self.delay)
        self.metadata = dict(context.invocation_metadata())
        tensors = read_inputs(request)
        ids = tensors["input_ids"].ravel().tolist()
        if request.model_name == "toy_step" and self.grows:
            return self._infer_growing(request, tensors, ids)
        count = int(tensors["position_ids"].ravel()[0])
        assert tensors["position_ids"].ravel().tolist() == list(range(count, count + len(ids)))
        assert tensors["seqlens_k"].tolist() == [[count + len(ids) - 1]]
        assert count + len(ids) <= self.max_length
        with self.lock:
            if request.model_name == "toy_kv":
                self.steps.append({"ids": ids, "id": request.id})
                past = self.append(request, context, ids, count)
            else:
                past = self._append_to_sequence(request, context, ids, count)
        logits = next_logits(past, self.vocab_size)
        response = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        response.outputs.add(name="logits", datatype="FP32", shape=(1, self.vocab_size))
        response.raw_output_contents.append(logits.tobytes())
        return response

    def _infer_growing(self, request, tensors: dict, ids: list[int]):
        self.steps.append({"ids": ids, "id": request.id})
        before = toy_growing.tokens_before(tensors, self.grows)
        rows = [next_logits([*before, *ids[: i + 1]], self.vocab_size) for i in range(len(ids))]
        response = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        toy_growing.add_answer(response, [*before, *ids], np.array(rows), self.cache_datatype)
        return response

    def _append_to_sequence(self, request, context, ids: list[int], count: int) -> list[int]:
        sequence, start, end = (
            request.parameters["sequence_id"].int64_param,
            request.parameters["sequence_start"].bool_param,
            request.parameters["sequence_end"].bool_param,
        )
        self.steps.append({"sequence": sequence, "ids": ids, "start": start, "end": end, "id": request.id})
        if start:
            self.sequences[sequence] = []
        elif sequence not in self.sequences:
            text = (
                f"inference request for sequence {sequence} to model 'toy_step' must specify the START flag"
            )
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{text} on the first request of the sequence")
        past = self.sequences[sequence]
        del past[count:]  # overwritten, as the attention kernel does
        assert len(past) == count
        past.extend(ids)
        if end:
            del self.sequences[sequence]
        return past

    def ModelStreamInfer(self, requests, context):
        context.add_callback(lambda: None if context.is_active() else self.cancelled.set())
        self.metadata = dict(context.invocation_metadata())
        if self.refusals:
            context.abort(*self.refusals.pop())
        for request in requests:
            self.requests.append(request)
            if request.model_name not in self.models:
                yield failure(f"Request for unknown model: '{request.model_name}' is not found")
            elif "file" in request.parameters:
                yield self._file(request)
            else:
                yield from self._generate(request, context)

    def _file(self, request):
        name = request.parameters["file"].string_param
        if name not in self.files:
            return failure(f"this model has no {name}")
        content = self.tokenizer_file if name == "tokenizer.json" else self.files[name].encode()
        return text_response(request, content, (), "stop", 0, 0, final=True)

    def _generate(self, request, context):
        tensors = read_inputs(request)
        if "input_ids" in tensors:
            ids = tensors["input_ids"].tolist()
        else:
            ids = self.tokenizer.encode(tensors["text_input"][0].decode()).ids
        if len(ids) >= self.max_length:
            yield failure(f"the prompt has {len(ids)} tokens; toy takes at most {self.max_length - 1}")
            return
        if tensors.get("max_tokens", [1])[0] == 0:
            response = text_response(request, b"", (), "length", len(ids), 0, final=True)
            self._add_score(response.infer_response, ids, tensors)
            yield response
            return
        seed = int(tensors["seed"][0]) if "seed" in tensors else 0
        answers = int(tensors["n"][0]) if "n" in tensors else 1
        for index in reversed(range(answers)):
            own = {**tensors, "seed": [(seed + index) % 2**64]}
            yield from self._answer(request, context, ids, own, index)
            if not context.is_active():
                return
        if self.separate_final:
            yield final_response(request)

    def _answer(self, request, context, ids, tensors, index):
        shown = ""
        for count, (token, text, reason) in enumerate(self.pieces(ids, tensors)):
            if self.error_after and count == self.error_after[0]:
                yield failure(self.error_after[1])
                return
            self.released.wait(self.delay)
            if not context.is_active():
                self.cancelled.set()
                return
            piece, shown = text[len(shown) :].encode(), text
            last = bool(reason) and not self.separate_final and not index
            reason = "" if self.no_finish_reason else reason
            response = text_response(
                request, piece, (token,), reason, len(ids), count + 1, final=last, index=index
            )
            if "logprobs" in tensors:
                add_logprobs(response.infer_response, int(tensors["logprobs"][0]))
            if count == 0:
                self._add_score(response.infer_response, ids, tensors)
            yield response

    def _add_score(self, response, ids, tensors):
        if "prompt_logprobs" not in tensors:
            return
        count = int(tensors["prompt_logprobs"][0])
        logits = [next_logits(ids[:end], self.vocab_size).astype(np.float64) for end in range(1, len(ids))]
        rows = [row - np.log(np.exp(row).sum()) for row in logits]
        top = [np.argsort(-row, kind="stable")[:count] for row in rows]
        chosen = [row[token] for row, token in zip(rows, ids[1:], strict=True)]
        values = [row[best] for row, best in zip(rows, top, strict=True)]
        add_output(response, "prompt_ids", "INT32", np.array(ids))
        add_output(response, "prompt_log_probs", "FP32", np.array(chosen))
        add_output(response, "prompt_top_log_prob_ids", "INT32", np.array(top).reshape(len(rows), count))
        add_output(response, "prompt_top_log_probs", "FP32", np.array(values).reshape(len(rows), count))

    def pieces(self, prompt: list[int], tensors: dict):
        """Each new token, the whole text that is certain with it, and the finish reason."""
        defaults = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "max_tokens": 256}
        tensors = {name: [value] for name, value in defaults.items()} | tensors
        temperature, top_k, top_p = (tensors[name][0] for name in ("temperature", "top_k", "top_p"))
        seed = int(tensors["seed"][0]) if "seed" in tensors else 0
        random = np.random.Generator(np.random.Philox(key=seed))
        stops = [stop.decode() for stop in tensors.get("stop_words", [])]
        limit = min(int(tensors["max_tokens"][0]), self.max_length - len(prompt))
        before, new, shown = self.tokenizer.decode(prompt), [], ""
        eos = {int(token) for token in self.eos_token_ids.split(",") if token}
        while True:
            logits = next_logits(prompt + new, self.vocab_size)
            new.append(reference_token(logits, temperature, int(top_k), float(top_p), random.random()))
            text = self.tokenizer.decode(prompt + new)[len(before) :]
            found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
            if found:
                yield new[-1], text[: min(found)[1]], "stop"
                return
            if new[-1] in eos or len(new) == limit:
                yield new[-1], text, "stop" if new[-1] in eos else "length"
                return
            held = max([n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])], default=0)
            certain = text[: len(text) - held].rstrip("\ufffd")
            shown = certain if len(certain) > len(shown) else shown
            yield new[-1], shown, ""


def main() -> None:
    """Serve, slowly, until killed; the port is printed."""
    toy = ToyTriton()
    toy.delay = 0.2
    toy.eos_token_ids = ""
    server, port = toy.serve()
    print(port, flush=True)  # noqa: T201
    server.wait_for_termination()


if __name__ == "__main__":
    main()
