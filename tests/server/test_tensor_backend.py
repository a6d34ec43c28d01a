"""A tensor model seen from the gateway, with a worker that goes away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from ds_engines.errors import Lost, Unavailable
from ds_engines.spec import ModelSpec, TensorSpec
from ds_serve.gateway.backend import TensorBackend
from ds_serve.gateway.regions import Regions
from ds_serve.gateway.requests import InferRequest
from ds_serve.transport.link import Link, listen
from ds_serve.transport.messages import Tensor

SPEC = ModelSpec("net", "onnxruntime", Path("net.onnx"), inputs=(TensorSpec("x", "INT8", (1,)),))


def request() -> InferRequest:
    now = time.monotonic()
    inputs = [Tensor("x", "INT8", (1,), memoryview(b"\1"))]
    return InferRequest("net", "", inputs, now, now + 30)


async def test_only_what_the_worker_was_given_is_lost(tmp_path: Path) -> None:
    links: list[Link] = []

    def link() -> Link:
        links.append(Link(lambda gateway, frames: gateway.close()))
        return links[-1]

    server = await listen(tmp_path / "socket", link)
    backend = TensorBackend(SPEC, Regions(tmp_path / "regions"))
    await backend.connect(str(tmp_path / "socket"))
    with pytest.raises(Lost, match="lost this request"):
        await backend.infer(request())
    with pytest.raises(Unavailable, match="is restarting") as refused:
        await backend.infer(request())
    assert not isinstance(refused.value, Lost), "it cannot have run, so it may be sent again"
    assert backend.in_flight == 0
    backend.close(Unavailable("over"))
    server.close()
    await asyncio.sleep(0.05)  # what is closed is gone in a later turn of the loop
