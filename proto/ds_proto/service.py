"""The methods of the inference service, for servers and clients to be built from."""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from ds_proto import grpc_service_pb2

_DESCRIPTOR = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

SERVICE: str = _DESCRIPTOR.full_name


class Method(NamedTuple):
    """One call. `path` is what a channel's `unary_unary` and its like take."""

    name: str
    path: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool

    @property
    def arity(self) -> str:
        """Which of a channel's factories makes the call, such as `unary_unary`."""
        ends = (self.client_streaming, self.server_streaming)
        return "_".join("stream" if streaming else "unary" for streaming in ends)


def _method(found: MethodDescriptor) -> Method:
    messages: Any = grpc_service_pb2
    return Method(
        name=found.name,
        path=f"/{SERVICE}/{found.name}",
        request=getattr(messages, found.input_type.name),
        response=getattr(messages, found.output_type.name),
        client_streaming=found.client_streaming,
        server_streaming=found.server_streaming,
    )


METHODS: dict[str, Method] = {found.name: _method(found) for found in _DESCRIPTOR.methods}
