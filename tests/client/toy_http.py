"""The toy server over HTTP, as Triton's generate and binary tensor data extensions have it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import service_pb2

from toy_wire import NUMBERS

DATATYPES = {
    **dict.fromkeys(("text_input", "stop_words"), "BYTES"),
    **dict.fromkeys(("input_ids", "max_tokens", "top_k", "n", "prompt_logprobs"), "INT32"),
    **dict.fromkeys(("temperature", "top_p", "timeout"), "FP32"),
    "seed": "UINT64",
    "stream": "BOOL",
}
STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 400,
    grpc.StatusCode.UNAVAILABLE: 503,
}


class Abort(Exception):  # noqa: N818
    """As gRPC's context raises it."""


class Context:
    """What the toy's methods want of gRPC."""

    active = True

    def abort(self, code, details):
        raise Abort(code, details)

    def is_active(self):
        return self.active

    def add_callback(self, callback):
        pass

    def invocation_metadata(self):
        return ()


def serve_http(toy, tls=None):
    """Start; the server, whose port is `server_port`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.toy = toy
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.server.toy.http_headers = dict(self.headers)
        toy, path, context = self.server.toy, self.path.split("/"), Context()
        if self.path == "/v2/health/ready":
            self._answer(200 if toy.ready else 400, b"")
        elif path[-1] == "ready":
            self._answer(200 if path[3] in toy.models else 400, b"")
        else:
            self._json(lambda: toy.ModelConfig(service_pb2.ModelConfigRequest(name=path[3]), context).config)

    def do_POST(self):
        self.server.toy.http_headers = dict(self.headers)
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path == "/v2/repository/index":
            models = self.server.toy.RepositoryIndex(None, None).models
            self._answer(200, json.dumps([json_format.MessageToDict(model) for model in models]).encode())
        elif self.path.endswith("/generate_stream"):
            self._generate(json.loads(body))
        else:
            self._infer(body)

    def _infer(self, body):
        length = int(self.headers["Inference-Header-Content-Length"])
        head, place = json.loads(body[:length]), length
        request = service_pb2.ModelInferRequest(model_name=self.path.split("/")[3], id=head["id"])
        for tensor in head["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
            request.raw_input_contents.append(body[place : place + size])
            place += size
        for name, value in head["parameters"].items():
            field = "bool_param" if isinstance(value, bool) else "int64_param"
            setattr(request.parameters[name], field, value)
        try:
            response = self.server.toy.ModelInfer(request, Context())
        except Abort as error:
            self._refuse(error)
            return
        outputs = [
            {
                "name": output.name,
                "datatype": output.datatype,
                "shape": list(output.shape),
                "parameters": {"binary_data_size": len(content)},
            }
            for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
        ]
        head = json.dumps({"outputs": outputs}).encode()
        body = b"".join((head, *response.raw_output_contents))
        self._answer(200, body, {"Inference-Header-Content-Length": str(len(head))})

    def _generate(self, body):
        context = Context()
        request = service_pb2.ModelInferRequest(model_name=self.path.split("/")[3], id=body.pop("id"))
        if "file" in body:
            request.parameters["file"].string_param = body.pop("file")
        for name, value in body.items():
            values = value if isinstance(value, list) else [value]
            request.inputs.add(name=name, datatype=DATATYPES[name], shape=[len(values)])
            request.raw_input_contents.append(packed(DATATYPES[name], values))
        responses = self.server.toy.ModelStreamInfer(iter([request]), context)
        try:
            first = next(responses)
        except Abort as error:
            self._refuse(error)
            return
        if first.error_message:
            self._answer(400, json.dumps({"error": first.error_message}).encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self._event(first)
            for response in responses:
                self._event(response)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client is gone
            context.active = False
            next(responses, None)
            self.close_connection = True

    def _event(self, response):
        event = (
            {"error": response.error_message}
            if response.error_message
            else values_of(response.infer_response)
        )
        if event:
            data = b"data: " + json.dumps(event).encode() + b"\n\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

    def _json(self, make):
        try:
            message = make()
        except Abort as error:
            self._refuse(error)
            return
        self._answer(200, json_format.MessageToJson(message, preserving_proto_field_name=True).encode())

    def _refuse(self, error):
        code, details = error.args
        self._answer(STATUSES[code], json.dumps({"error": details}).encode())

    def _answer(self, status, content, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def packed(datatype, values):
    """Values as bytes."""
    if datatype == "BYTES":
        encoded = [value.encode() for value in values]
        return b"".join(len(value).to_bytes(4, "little") + value for value in encoded)
    return np.asarray(values, NUMBERS[datatype]).tobytes()


def values_of(response):
    """The outputs as JSON has them: one value alone, none left out."""
    found = {}
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            found[output.name] = content[4:].decode()
        else:
            values = np.frombuffer(content, NUMBERS[output.datatype]).tolist()
            found |= {output.name: values[0] if len(values) == 1 else values} if values else {}
    return found
