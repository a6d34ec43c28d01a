"""Server reflection, v1 and v1alpha: tools ask what the server speaks, and need no .proto files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import (
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from ds_proto import grpc_service_pb2, model_config_pb2
from ds_proto.service import SERVICE
from ds_serve.gateway.grpc.health import HEALTH

ALPHA: str = reflection.SERVICE_NAME
V1 = ALPHA.replace("v1alpha", "v1")
METHOD = "ServerReflectionInfo"


PATHS = frozenset(f"/{service}/{METHOD}" for service in (ALPHA, V1))
MOST_UNSENT = 64
"""Answers that may wait to be sent before no more requests are taken."""

Emit = Callable[[ServerReflectionResponse], None]


def answer(request: ServerReflectionRequest) -> ServerReflectionResponse:
    """Of both versions: their messages are the same, only the packages' names differ."""
    made: ServerReflectionResponse = next(_servicer().ServerReflectionInfo(iter((request,)), None))
    return made


class Stream:
    """The requests of one stream, as `stream.Stream` is for inference: in by `take`, answers out by
    `emit`, each at once.
    """

    busy = False

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._unsent = 0
        self._less = asyncio.Event()

    @property
    def full(self) -> bool:
        return self._unsent >= MOST_UNSENT

    def take(self, request: ServerReflectionRequest) -> None:
        self._unsent += 1
        self._emit(answer(request))

    def sent(self, answers: int = 1) -> None:
        self._unsent -= answers
        self._less.set()

    async def room(self) -> None:
        while self.full:
            self._less.clear()
            await self._less.wait()

    async def finished(self) -> None:
        """There is nothing to wait for."""

    def close(self) -> None:
        """Nor to abandon."""


@cache
def _servicer() -> reflection.ReflectionServicer:
    return reflection.ReflectionServicer((SERVICE, HEALTH, ALPHA, V1), _pool())


@cache
def _pool() -> DescriptorPool:
    """All that can be asked for; our messages are in no pool that others share."""
    pool = DescriptorPool()
    for module in (model_config_pb2, grpc_service_pb2, health_pb2, reflection_pb2):
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        pool.AddSerializedFile(file.SerializeToString())
    renamed = text_format.MessageToString(file).replace("v1alpha", "v1")
    first = text_format.Parse(renamed, FileDescriptorProto())
    pool.AddSerializedFile(first.SerializeToString())
    return pool
