"""A decoupled model seen from the gateway, with a worker that is only its socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ds_engines.errors import Overloaded, Unavailable, Unsupported
from ds_engines.spec import ModelSpec, TensorSpec
from ds_serve.gateway.regions import Regions
from ds_serve.gateway.requests import InferRequest
from ds_serve.gateway.whole import MOST, WholeBackend
from ds_serve.transport.codec import frames_of, read_to_worker
from ds_serve.transport.link import Link, listen
from ds_serve.transport.messages import Answer, Infer, Tensor

SPEC = ModelSpec(
    "many", "python", Path("model.py"), inputs=(TensorSpec("x", "INT8", (1,)),), decoupled=True
)


class Worker:
    """Answers each request so often, and keeps what it was sent."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.heard: list[object] = []
        self.links: list[Link] = []

    def link(self) -> Link:
        self.links.append(Link(self.receive))
        return self.links[-1]

    def receive(self, gateway: Link, frames: list[memoryview]) -> None:
        for message in read_to_worker(frames):
            self.heard.append(message)
            if isinstance(message, Infer):
                parts = [Answer(message.id, final=False) for _ in range(self.count)]
                gateway.send(frames_of([*parts, Answer(message.id)]))


@asynccontextmanager
async def connected(folder: Path, worker: Worker) -> AsyncIterator[WholeBackend]:
    server = await listen(folder / "socket", worker.link)
    backend = WholeBackend(SPEC, Regions(folder / "regions"))
    await backend.connect(str(folder / "socket"))
    try:
        yield backend
    finally:
        await asyncio.sleep(0.05)  # it has accepted the connection
        backend.close(Unavailable("over"))
        for link in worker.links:
            link.close()
        server.close()
        await asyncio.sleep(0.05)  # what is closed is gone in a later turn of the loop


def request() -> InferRequest:
    now = time.monotonic()
    inputs = [Tensor("x", "INT8", (1,), memoryview(b"\1"))]
    said = {"mine": 1, "sequence_id": 3}
    return InferRequest("many", "", inputs, now, now + 30, id="7", parameters=said)


async def test_answers_come_in_order_and_the_worker_knows_the_request(tmp_path: Path) -> None:
    worker = Worker(3)
    async with connected(tmp_path, worker) as backend:
        assert [one.final async for one in backend.submit(request())] == [False] * 3 + [True]
        assert backend.in_flight == 0
    (infer,) = [message for message in worker.heard if isinstance(message, Infer)]
    assert infer.about is not None
    assert (infer.about.id, infer.about.parameters) == ("7", {"mine": 1})


async def test_answers_that_nobody_takes_are_bounded(tmp_path: Path) -> None:
    async with connected(tmp_path, Worker(MOST + 100)) as backend:
        found = 0
        with pytest.raises(Overloaded, match="were not taken"):
            found = len([one async for one in backend.submit(request())])
        assert not found


async def test_one_answer_is_refused(tmp_path: Path) -> None:
    async with connected(tmp_path, Worker(1)) as backend:
        with pytest.raises(Unsupported, match="'many' is decoupled"):
            await backend.infer(request())
