"""Load on a server: so many clients, each with one request in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import grpc
import grpc.aio
import numpy as np
import orjson

from ds_client import messages
from ds_client.messages import Target
from ds_engines.spec import TensorSpec
from ds_profile.errors import ProfileError
from ds_profile.http_client import HttpConnection
from ds_profile.inputs import Inputs, raw
from ds_profile.server import Server
from ds_proto import grpc_service_pb2 as pb
from ds_proto.service import METHODS

Protocol = Literal["http", "grpc"]
TIMEOUT = 60.0
MARK = "00000000"
"""Where the request's number goes; numbers have as many digits."""

CLIENTS_PER_CHANNEL = 8
ENOUGH = 20
"""Failed requests after which a measurement is given up."""

Call = Callable[[str], Awaitable[None]]
"""Sends one request under this id. Raises RequestFailed."""


class RequestFailed(Exception):
    """A request got an error instead of an answer."""


@dataclass
class Measured:
    """`waits`: nanoseconds by request id, of the requests that were answered."""

    seconds: float = 0.0
    waits: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.waits) / self.seconds if self.seconds else 0.0

    def latency_ms(self, percentile: float) -> float:
        """Infinite where there is no answer."""
        if not self.waits:
            return float("inf")
        return float(np.percentile(list(self.waits.values()), percentile)) / 1e6


class Load:
    """Clients whose connections stay open from one measurement to the next."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls
        self._numbers = count()

    async def run(self, clients: int, seconds: float) -> Measured:
        """Keep `clients` requests in flight for so long; those under way then are waited for."""
        measured = Measured()
        begun = time.monotonic()
        until = begun + seconds
        await asyncio.gather(*(self._client(i, until, measured) for i in range(clients)))
        measured.seconds = time.monotonic() - begun
        return measured

    async def _client(self, index: int, until: float, measured: Measured) -> None:
        call = self._calls[index % len(self._calls)]
        while time.monotonic() < until and len(measured.errors) < ENOUGH:
            request_id = f"{next(self._numbers):08d}"
            sent = time.monotonic_ns()
            try:
                await call(request_id)
            except RequestFailed as error:
                measured.errors.append(str(error))
            else:
                measured.waits[request_id] = time.monotonic_ns() - sent


@asynccontextmanager
async def to_model(
    server: Server,
    model: str,
    inputs: tuple[TensorSpec, ...],
    arrays: Inputs,
    protocol: Protocol,
    clients: int,
) -> AsyncIterator[Load]:
    """Load of one kind of request, from at most `clients` clients."""
    known = {tensor.name: tensor for tensor in inputs}
    values = {name: raw(known[name], array) for name, array in arrays.items() if name in known}
    request = messages.infer_request(Target(model), values, "")
    async with AsyncExitStack() as stack:
        if protocol == "http":
            connections = [HttpConnection(server.http) for _ in range(clients)]
            for connection in connections:
                stack.callback(connection.close)
            yield Load([_http(each, server.http, request) for each in connections])
        else:
            channels = [_channel(server.grpc) for _ in range(-(-clients // CLIENTS_PER_CHANNEL))]
            for channel in channels:
                stack.push_async_callback(channel.close)
            yield Load([_grpc(channel, request) for channel in channels])


async def first_that_works(load: Load, name: str) -> None:
    """Send one request. Raises ProfileError with the server's words where it fails."""
    measured = await load.run(1, 0.001)
    if measured.errors:
        raise ProfileError(f"model {name!r} refused a request: {measured.errors[0]}")


def _http(connection: HttpConnection, address: str, request: pb.ModelInferRequest) -> Call:
    tensors = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(data)},
        }
        for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True)
    ]
    json = orjson.dumps({"id": MARK, "inputs": tensors, "parameters": {"binary_data_output": True}})
    body = json + b"".join(request.raw_input_contents)
    head = (
        f"POST /v2/models/{request.model_name}/infer HTTP/1.1\r\nhost: {address}\r\n"
        f"inference-header-content-length: {len(json)}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    before, mark, after = (head.encode() + body).partition(b'"' + MARK.encode() + b'"')
    assert mark, "the id is in the JSON"

    async def call(request_id: str) -> None:
        message = b'%b"%b"%b' % (before, request_id.encode(), after)
        try:
            status, answer = await connection.request(message, TIMEOUT)
        except (OSError, TimeoutError) as error:
            raise RequestFailed(str(error)) from None
        if status != 200:
            raise RequestFailed(answer.decode(errors="replace"))

    return call


def _channel(address: str) -> grpc.aio.Channel:
    """A connection of its own: several gateways get their share only of several connections."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]
    return grpc.aio.insecure_channel(address, options)


def _grpc(channel: grpc.aio.Channel, request: pb.ModelInferRequest) -> Call:
    infer: Any = channel.unary_unary(METHODS["ModelInfer"].path)

    async def call(request_id: str) -> None:
        request.id = request_id
        try:
            await infer(request.SerializeToString(), timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            raise RequestFailed(error.details() or error.code().name) from None

    return call
