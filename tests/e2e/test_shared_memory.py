"""Tensors in shared memory, with NVIDIA's client and its own helpers, over both protocols."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import onnx_models
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from serving import Server
from tritonclient.utils import InferenceServerException, serialize_byte_tensor
from tritonclient.utils import shared_memory as shm

names = itertools.count()
Client = Any


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("shm")
    with Server(
        *("--model", onnx_models.mlp(folder / "mlp.onnx")),
        *("--model", onnx_models.identities(folder / "echo.onnx", ["BYTES"])),
        *("--gateways", "2"),
    ) as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    if request.param == "http":
        made: Client = triton_http.InferenceServerClient(server.http_address)
    else:
        made = triton_grpc.InferenceServerClient(server.grpc)
    with made:
        yield made
        made.unregister_system_shared_memory()


@pytest.fixture
def memory() -> Iterator[Any]:
    """Makes memory objects: name, key and size; gone in the end."""
    handles = []

    def make(size: int) -> tuple[str, str, Any]:
        name = f"region-{next(names)}"
        key = f"/ds-serve-test-{name}"
        handles.append(shm.create_shared_memory_region(name, key, size))
        return name, key, handles[-1]

    yield make
    for handle in handles:
        shm.destroy_shared_memory_region(handle)


def tensors(client: Client) -> Any:
    return triton_http if isinstance(client, triton_http.InferenceServerClient) else triton_grpc


def ask(client: Client, region: str, shape: tuple[int, ...], offset: int = 0) -> Any:
    made = tensors(client)
    tensor = made.InferInput("x", list(shape), "FP32")
    tensor.set_shared_memory(region, int(np.prod(shape)) * 4, offset)
    return client.infer("mlp", [tensor]).as_numpy("y")


def sent(client: Client, rows: Any) -> Any:
    tensor = tensors(client).InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return client.infer("mlp", [tensor]).as_numpy("y")


@pytest.mark.parametrize("count", [1, 64])  # 256 bytes are sent on, 16 kB too; see the next test
def test_an_input_in_shared_memory_is_as_good_as_one_that_is_sent(
    client: Client, memory: Any, count: int
) -> None:
    rows = np.random.default_rng(count).standard_normal((count, 64)).astype(np.float32)
    name, key, handle = memory(rows.nbytes + 100)
    shm.set_shared_memory_region(handle, [rows], offset=100)
    client.register_system_shared_memory(name, key, rows.nbytes + 100)
    np.testing.assert_array_equal(ask(client, name, rows.shape, 100), sent(client, rows))


@pytest.mark.slow
def test_a_large_input_is_read_by_the_worker_itself(
    client: Client, memory: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows of 64 floats, 1,000 at once: above the size from which nothing is copied."""
    model = onnx_models.mlp(tmp_path_factory.mktemp("big") / "big.onnx")
    rows = np.random.default_rng(5).standard_normal((1000, 64)).astype(np.float32)
    with (
        Server("--model", f"mlp={model}", "--max-batch-size", "1000") as big,
        type(client)(big.http_address if _is_http(client) else big.grpc) as other,
    ):
        name, key, handle = memory(rows.nbytes)
        shm.set_shared_memory_region(handle, [rows])
        other.register_system_shared_memory(name, key, rows.nbytes)
        for factor in (1, 2):
            shm.set_shared_memory_region(handle, [rows * np.float32(factor)])
            expected = sent(other, rows * np.float32(factor))
            np.testing.assert_array_equal(ask(other, name, rows.shape), expected)
        assert key in Path(f"/proc/{big.worker('mlp')}/maps").read_text()


def _is_http(client: Client) -> bool:
    return isinstance(client, triton_http.InferenceServerClient)


def test_an_output_is_put_where_the_client_wants_it(client: Client, memory: Any) -> None:
    rows = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    name, key, handle = memory(1000)
    client.register_system_shared_memory(name, key, 1000)
    made = tensors(client)
    tensor = made.InferInput("x", [2, 64], "FP32")
    tensor.set_data_from_numpy(rows)
    output = made.InferRequestedOutput("y")
    output.set_shared_memory(name, 100, 8)
    answer = client.infer("mlp", [tensor], outputs=[output])
    found = answer.get_output("y")
    if not _is_http(client):
        assert found.parameters["shared_memory_region"].string_param == name
        assert found.parameters["shared_memory_byte_size"].int64_param == 64
    there = shm.get_contents_as_numpy(handle, np.float32, [2, 8], offset=8)
    np.testing.assert_array_equal(there, sent(client, rows))


def test_strings_may_lie_there_too(client: Client, memory: Any) -> None:
    words = np.array([b"one", b"", "zwölf".encode()], dtype=np.object_)
    size = sum(len(word) + 4 for word in words)
    name, key, handle = memory(size)
    shm.set_shared_memory_region(handle, [serialize_byte_tensor(words)])
    client.register_system_shared_memory(name, key, size)
    made = tensors(client)
    tensor = made.InferInput("in_BYTES", [1, 3], "BYTES")
    tensor.set_shared_memory(name, size)
    answer = client.infer("echo", [tensor])
    assert answer.as_numpy("out_BYTES").tolist() == [words.tolist()]


def test_a_region_is_known_to_every_gateway(server: Server, memory: Any) -> None:
    """Each connection reaches one of two; 16 reach both, all but surely."""
    rows = np.ones((1, 64), np.float32)
    name, key, handle = memory(256)
    shm.set_shared_memory_region(handle, [rows])
    address = server.http_address
    with triton_http.InferenceServerClient(address) as client:
        client.register_system_shared_memory(name, key, 256)
    for _ in range(16):
        with triton_http.InferenceServerClient(address) as client:
            assert ask(client, name, (1, 64)).shape == (1, 8)
            assert [each["name"] for each in client.get_system_shared_memory_status()] == [name]
    with triton_http.InferenceServerClient(address) as client:
        client.unregister_system_shared_memory(name)
    for _ in range(16):
        with (
            triton_http.InferenceServerClient(address) as client,
            pytest.raises(InferenceServerException, match="must be registered first"),
        ):
            ask(client, name, (1, 64))


def test_a_name_that_is_registered_anew_is_another_region(client: Client, memory: Any) -> None:
    answers = []
    name, _, _ = memory(256)
    for value in (1, 2):
        _, key, handle = memory(256)
        shm.set_shared_memory_region(handle, [np.full((1, 64), value, np.float32)])
        client.register_system_shared_memory(name, key, 256)
        answers.append(ask(client, name, (1, 64)))
        client.unregister_system_shared_memory(name)
    assert not np.array_equal(*answers)


def test_what_is_wrong_is_said(client: Client, memory: Any) -> None:
    name, key, _ = memory(256)
    client.register_system_shared_memory(name, key, 256)
    with pytest.raises(InferenceServerException, match=f"'{name}' is registered already"):
        client.register_system_shared_memory(name, key, 256)
    with pytest.raises(InferenceServerException, match="No such file or directory"):
        client.register_system_shared_memory("other", "/not-there", 256)
    with pytest.raises(InferenceServerException, match="which has 256 bytes"):
        client.register_system_shared_memory("other", key, 257)
    with pytest.raises(InferenceServerException, match="is no name of a memory object"):
        client.register_system_shared_memory("other", "/../etc/passwd", 1)
    with pytest.raises(InferenceServerException, match=f"pass the end .* '{name}'"):
        ask(client, name, (1, 64), 8)
    with pytest.raises(InferenceServerException, match="there is no shared memory region 'none'"):
        client.get_system_shared_memory_status("none")
    client.unregister_system_shared_memory("none")


def test_an_output_that_does_not_fit_is_an_error(client: Client, memory: Any) -> None:
    name, key, _ = memory(256)
    client.register_system_shared_memory(name, key, 256)
    made = tensors(client)
    tensor = made.InferInput("x", [1, 64], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 64), np.float32))
    output = made.InferRequestedOutput("y")
    output.set_shared_memory(name, 31)
    with pytest.raises(InferenceServerException, match="32 bytes; its shared_memory_byte_size is"):
        client.infer("mlp", [tensor], outputs=[output])


def test_memory_that_shrank_is_an_error_and_nobody_dies(client: Client, memory: Any) -> None:
    name, key, _ = memory(8192)
    client.register_system_shared_memory(name, key, 8192)
    with open(f"/dev/shm{key}", "r+b") as file:  # noqa: PTH123
        file.truncate(4096)
    with pytest.raises(InferenceServerException, match="which has 4096 bytes"):
        ask(client, name, (1, 64))
    assert client.is_server_live()


def test_a_registration_without_a_key_is_refused(server: Server) -> None:
    answer = httpx2.post(f"{server.http}/v2/systemsharedmemory/region/x/register", json={})
    assert answer.status_code == 400
    assert "key" in answer.json()["error"]
