"""The bytes that a gateway holds at one time are bounded, also those of requests half arrived."""

from __future__ import annotations

import contextlib
import re
import select
import socket
from collections.abc import Iterator

import onnx_models
import pytest
from serving import Server, until
from slow_requests import is_right, post

MB = 1_000_000
PER_REQUEST, TOGETHER = MB, 3 * MB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = onnx_models.slow(tmp_path_factory.mktemp("bytes") / "slow.onnx")
    with Server(
        *("--model", model),
        *("--max-request-bytes", str(PER_REQUEST)),
        *("--max-bytes-in-flight", str(TOGETHER)),
    ) as server:
        yield server


def begin(server: Server, sent: int, path: str = "/v2/models/slow/infer") -> socket.socket:
    """A request of which `sent` bytes arrive, and the last one never."""
    host, _, port = server.http_address.rpartition(":")
    made = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {sent + 1}\r\n\r\n"
    made.sendall(head.encode())
    with contextlib.suppress(ConnectionError):  # it may be refused before it is all there
        made.sendall(bytes(sent))
    return made


def answer(connection: socket.socket) -> tuple[int, str]:
    """The status and the whole answer; head and body may arrive apart."""
    said = ""
    while not (whole := re.search(r"content-length: (\d+).*?\r\n\r\n(.*)", said, re.DOTALL)) or (
        len(whole[2]) < int(whole[1])
    ):
        piece = connection.recv(8192).decode().lower()
        assert piece, f"it broke off after {said!r}"
        said += piece
    found = re.match(r"http/1.1 (\d+)", said)
    assert found, said
    return int(found[1]), said


@pytest.mark.parametrize("path", ["/v2/models/slow/infer", "/v1/chat/completions"])
def test_bodies_that_never_end_do_not_fill_the_memory(server: Server, path: str) -> None:
    """Three fit; one of four is refused at once. Those that leave make room again."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(begin(server, 900_000, path)) for _ in range(4)]
        refused, _, _ = select.select(connections, [], [], 30)
        assert len(refused) == 1
        status, said = answer(refused[0])
        assert status == 503
        assert "retry-after: 1" in said
        assert "3,000,000 (--max-bytes-in-flight)" in said
        assert set(select.select(connections, [], [], 0.3)[0]) <= set(refused)
    until(lambda: room(server), "the bytes were not given back", 20, server.log)
    assert is_right(post(server))


def room(server: Server) -> bool:
    """Whether three large requests fit at a time; their answers say that they are no requests."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(begin(server, 900_000)) for _ in range(3)]
        for connection in connections:
            connection.sendall(b"\0")
        return [answer(connection)[0] for connection in connections] == [400, 400, 400]
