"""A small server of the whole contract that answers with what it was asked, and both clients."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from functools import partial

import grpc
import pytest

from ds_client import AsyncClient, Client
from ds_proto import grpc_service_pb2 as pb
from ds_proto.service import METHODS, SERVICE

FAILURES = {
    "missing": (grpc.StatusCode.NOT_FOUND, "there is no model 'missing'", ()),
    "wrong": (grpc.StatusCode.INVALID_ARGUMENT, "input 'x' is FP32", ()),
    "full": (grpc.StatusCode.UNAVAILABLE, "the queue is full", (("retry-after", "3"),)),
    "limited": (grpc.StatusCode.RESOURCE_EXHAUSTED, "too fast", (("retry-after", "0.5"),)),
    "large": (grpc.StatusCode.RESOURCE_EXHAUSTED, "message is too large", ()),
    "locked": (grpc.StatusCode.UNAUTHENTICATED, "no key", ()),
    "restarting": (grpc.StatusCode.UNAVAILABLE, "", (("retry-after", "soon"),)),
    "absent": (grpc.StatusCode.UNIMPLEMENTED, "not offered here", ()),
    "broken": (grpc.StatusCode.INTERNAL, "the engine failed", ()),
}


class EchoService:
    """Answers every inference with its own inputs. What a model does is in its name."""

    def __init__(self) -> None:
        self.headers: dict[str, str | bytes] = {}
        self.requests: list[pb.ModelInferRequest] = []
        self.stream_ended = threading.Event()
        self.ready = True
        self.failures: list[tuple[grpc.StatusCode, str, tuple]] = []  # one for each request
        self.streams = 0
        self.peers: set[str] = set()
        self.hold = threading.Event()  # what the model "held" waits for
        self.loaded: list[object] = []

    def handler(self, name: str) -> grpc.RpcMethodHandler:
        method = METHODS[name]
        make = getattr(grpc, f"{method.arity}_rpc_method_handler")
        call = getattr(self, name, self._not_offered)
        return make(
            call,
            request_deserializer=method.request.FromString,
            response_serializer=method.response.SerializeToString,
        )

    def _not_offered(self, _request, context):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not offered here")

    def ServerLive(self, _request, _context):
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, _request, _context):
        return pb.ServerReadyResponse(ready=self.ready)

    def ModelReady(self, request, _context):
        return pb.ModelReadyResponse(ready=request.name == "echo")

    def ServerMetadata(self, _request, _context):
        return pb.ServerMetadataResponse(name="echo", version="1", extensions=["statistics"])

    def ModelMetadata(self, request, context):
        self._fail(request.name, context)
        answer = pb.ModelMetadataResponse(name=request.name, versions=["1"], platform="none")
        answer.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
        answer.outputs.add(name="x", datatype="FP32", shape=[-1, 2])
        return answer

    def ModelConfig(self, request, _context):
        answer = pb.ModelConfigResponse()
        answer.config.name = request.name
        answer.config.max_batch_size = 4
        return answer

    def ModelStatistics(self, request, _context):
        answer = pb.ModelStatisticsResponse()
        model = answer.model_stats.add(name="echo", version="1")
        model.inference_count, model.execution_count = 8, 2
        model.inference_stats.success.count = 8
        model.inference_stats.success.ns = 1_500_000_000
        return answer

    def ModelInfer(self, request, context):
        self.headers = dict(context.invocation_metadata())
        self.peers.add(context.peer())
        self.requests.append(request)
        self._fail(request.model_name, context)
        if request.model_name == "slow":
            time.sleep(min(context.time_remaining(), 5) + 0.5)
        return self._echo(request)

    def ModelStreamInfer(self, requests, context):
        self.streams += 1
        context.add_callback(self.stream_ended.set)
        for request in requests:
            self.requests.append(request)
            self._fail(request.model_name, context)
            if request.model_name == "writer":
                yield from self._write(request, context)
            elif request.model_name == "grumpy" and request.id == "1":
                about = pb.ModelInferResponse(id=request.id)
                yield pb.ModelStreamInferResponse(error_message="not now", infer_response=about)
            elif request.model_name == "typed-refusal":
                about = pb.ModelInferResponse(id=request.id)
                about.parameters["error_kind"].string_param = "Overloaded"
                about.parameters["retry_after"].double_param = 2.5
                yield pb.ModelStreamInferResponse(error_message="full", infer_response=about)
            else:
                yield pb.ModelStreamInferResponse(infer_response=self._echo(request))

    def RepositoryIndex(self, request, _context):
        answer = pb.RepositoryIndexResponse()
        answer.models.add(name="echo", version="1", state="READY")
        if not request.ready:
            answer.models.add(name="sleeper", state="UNAVAILABLE", reason="unloaded")
        return answer

    def RepositoryModelLoad(self, request, context):
        self._fail(request.model_name, context)
        self.loaded.append(request)
        return pb.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, request, context):
        self._fail(request.model_name, context)
        self.loaded.append(request)
        return pb.RepositoryModelUnloadResponse()

    def _fail(self, model: str, context) -> None:
        if model == "held":
            self.hold.wait(10)
        if self.failures or model in FAILURES:
            code, message, trailers = self.failures.pop(0) if self.failures else FAILURES[model]
            context.set_trailing_metadata(trailers)
            context.abort(code, message)

    def _echo(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        answer = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        wanted = {output.name for output in request.outputs}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            if wanted and tensor.name not in wanted:
                continue
            output = answer.outputs.add(
                name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
            )
            if request.model_name == "typed":
                output.contents.int_contents.extend(raw)
            else:
                answer.raw_output_contents.append(raw)
        if request.model_name == "liar":
            answer.outputs[0].shape[0] += 1
        return answer

    def _write(self, request: pb.ModelInferRequest, context) -> Iterator[object]:
        """One word an answer, over and over, until max_tokens; then an empty last answer."""
        given = {
            tensor.name: raw
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        assert request.parameters["triton_enable_empty_final_response"].bool_param
        assert given["stream"] == b"\1"
        words = given["text_input"][4:].decode().split()
        settings = json.loads(given["sampling_parameters"][4:])
        for number in range(settings["max_tokens"]):
            if not context.is_active():
                return
            yield self._piece(request, words[number % len(words)] + " ", False)
        yield self._piece(request, "", True)

    def _piece(self, request: pb.ModelInferRequest, text: str, final: bool) -> object:
        answer = pb.ModelStreamInferResponse()
        reply = answer.infer_response
        reply.id = request.id
        reply.parameters["triton_final_response"].bool_param = final
        if text:
            raw = text.encode()
            reply.outputs.add(name="text_output", datatype="BYTES", shape=[1])
            reply.raw_output_contents.append(struct.pack("<I", len(raw)) + raw)
        return answer


@pytest.fixture
def echo():
    """The service behind `address`, to look at what reached it."""
    return EchoService()


class Servers:
    """Starts servers of the contract, which end with the test."""

    def __init__(self) -> None:
        self._servers: list[grpc.Server] = []
        self._timers: list[threading.Timer] = []

    def start(self, echo: EchoService, port: int = 0, credentials=None) -> int:
        """The port it listens at."""
        server = grpc.server(futures.ThreadPoolExecutor(4))
        handlers = {name: echo.handler(name) for name in METHODS}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        if credentials is None:
            port = server.add_insecure_port(f"127.0.0.1:{port}")
        else:
            port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
        server.start()
        self._servers.append(server)
        return port

    def later(self, echo: EchoService, port: int, seconds: float) -> None:
        self._timers.append(threading.Timer(seconds, self.start, (echo, port)))
        self._timers[-1].start()

    def free_port(self) -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return listener.getsockname()[1]

    def stop(self) -> None:
        for timer in self._timers:
            timer.join()
        for server in self._servers:
            server.stop(0).wait()


@pytest.fixture
def serve():
    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture
def address(serve, echo):
    return f"127.0.0.1:{serve.start(echo)}"


class Awaited:
    """An AsyncClient that is called without await, so that one test tries both clients."""

    def __init__(self, runner: asyncio.Runner, client: AsyncClient) -> None:
        self._runner = runner
        self._client = client

    def __getattr__(self, name):
        def call(*arguments, **options):
            result = getattr(self._client, name)(*arguments, **options)
            if inspect.isasyncgen(result):
                return self._drawn(result)
            return self._runner.run(result)

        return call

    def _drawn(self, items):
        async def following():
            return await anext(items, None)

        try:
            while (item := self._runner.run(following())) is not None:
                yield item
        finally:
            self._runner.run(items.aclose())


@pytest.fixture(params=["blocking", "asyncio"])
def connect_to(request):
    """Makes a client of either kind of an address, and closes it in the end."""
    runner = asyncio.Runner()
    opened = []

    def make(address, **options):
        kind = Client if request.param == "blocking" else AsyncClient
        client = kind(address, **options)
        opened.append(client if request.param == "blocking" else Awaited(runner, client))
        return opened[-1]

    yield make
    for client in opened:
        client.close()
    runner.close()


@pytest.fixture
def connect(connect_to, address):
    """Makes a client of either kind of the echo server."""
    return partial(connect_to, address)


@pytest.fixture
def client(connect):
    return connect(timeout=10, retry=None)
