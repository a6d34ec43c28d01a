"""Server reflection, v1 and v1alpha: tools ask what the server speaks, and need no .proto files."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
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


async def answers(
    requests: AsyncIterable[ServerReflectionRequest], timeout: float | None, parent: str
) -> AsyncIterator[ServerReflectionResponse]:
    """Of both versions: their messages are the same, only the packages' names differ. `timeout`
    and `parent` are what every stream is called with.
    """
    servicer = reflection.aio.ReflectionServicer((SERVICE, HEALTH, ALPHA, V1), _pool())
    async for answer in servicer.ServerReflectionInfo(requests, None):
        yield answer


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
