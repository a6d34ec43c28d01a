"""gRPC health and server reflection, as their official clients ask, whatever carries them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import grpc
import onnx_models
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from serving import Server

from ds_proto.service import METHODS, SERVICE

Status = health_pb2.HealthCheckResponse
HEALTH = "grpc.health.v1.Health"
REFLECTION = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]


def serve(tmp_path_factory: Any, carrier: str) -> Server:
    folder = tmp_path_factory.mktemp("services")
    model = onnx_models.mlp(folder / "mlp.onnx")
    return Server("--model", model, "--grpc-server", carrier)


CARRIERS = [
    "native",
    pytest.param("grpcio", marks=pytest.mark.slow),
    pytest.param(
        "pyvoy",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not find_spec("pyvoy"), reason="pyvoy is not installed"),
        ],
    ),
]


@pytest.fixture(scope="module", params=CARRIERS)
def server(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory, request.param) as running:
        yield running


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as made:
        yield made


def ask(channel: grpc.Channel, service: str, *requests: Any) -> list[Any]:
    """Server reflection's answers to these requests."""
    call = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    return list(call(iter(requests), timeout=20))


@pytest.mark.parametrize("service", ["", SERVICE, "mlp"])
def test_health_is_checked(channel: grpc.Channel, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
    assert answer.status == Status.SERVING


def test_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=20)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    watched = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=20)
    assert next(watched).status == Status.SERVICE_UNKNOWN
    watched.cancel()


def raw(channel: grpc.Channel, path: str, arity: str, data: bytes) -> grpc.StatusCode:
    """How a call ends whose request is these bytes."""
    call = getattr(channel, arity)(path, bytes, bytes)
    try:
        answer = call(iter([data]) if arity.startswith("stream") else data, timeout=20)
        list(answer)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("path", "arity"),
    [
        (f"/{HEALTH}/Check", "unary_unary"),
        (f"/{HEALTH}/Watch", "unary_stream"),
        (f"/{REFLECTION[0]}/ServerReflectionInfo", "stream_stream"),
    ],
)
def test_bytes_that_are_no_request_are_refused(
    server: Server, channel: grpc.Channel, path: str, arity: str
) -> None:
    assert raw(channel, path, arity, b"\xff") is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in server.log()


@pytest.mark.slow
@pytest.mark.parametrize("carrier", CARRIERS)
def test_who_watches_is_told_of_the_end(
    tmp_path_factory: pytest.TempPathFactory, carrier: str
) -> None:
    with serve(tmp_path_factory, carrier) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watched).status == Status.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert [answer.status for answer in watched] == [Status.NOT_SERVING]
        assert server.process.wait(30) == 0


def test_reflection_describes_every_service(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert list(database.get_services()) == [HEALTH, *REFLECTION, SERVICE]
    pool = DescriptorPool(database)
    service = pool.FindServiceByName(SERVICE)
    assert [method.name for method in service.methods] == list(METHODS)
    assert pool.FindMessageTypeByName("inference.ModelConfig").fields_by_name["max_batch_size"]
    for name in (HEALTH, *REFLECTION):
        assert pool.FindServiceByName(name).methods


@pytest.mark.parametrize("service", REFLECTION)
def test_both_versions_of_reflection_answer(channel: grpc.Channel, service: str) -> None:
    wanted = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=service),
        reflection_pb2.ServerReflectionRequest(file_by_filename="nowhere.proto"),
    ]
    listed, file, missing = ask(channel, service, *wanted)
    assert service in [each.name for each in listed.list_services_response.service]
    (described,) = file.file_descriptor_response.file_descriptor_proto
    package = FileDescriptorProto.FromString(described).package
    assert service == f"{package}.ServerReflection"
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
