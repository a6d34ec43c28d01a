"""Sequences and time limits of ds_client with a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from onnx_models import slow, told_sums
from serving import Server
from slow_requests import SECOND

from ds_client import AsyncClient, Client, DeadlineExceeded

SUMS = """max_batch_size: 1
sequence_batching {
    max_sequence_idle_microseconds: 60000000
    control_input { name: "start" control {
        kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } }
    control_input { name: "end" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [0, 1] } }
    control_input { name: "ready" control {
        kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] } }
    control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
    state { input_name: "state" output_name: "next" data_type: TYPE_FP32 dims: [1] }
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`sums` has room for one sequence at a time."""
    folder = tmp_path_factory.mktemp("sums")
    told_sums(folder / "sums" / "model.onnx")
    (folder / "sums" / "config.pbtxt").write_text(SUMS)
    models = ["--model", folder / "sums", "--model", slow(folder / "slow.onnx")]
    with Server(*models) as server:
        yield server


def x(value: float) -> dict[str, np.ndarray]:
    return {"x": np.array([[value]], np.float32)}


def test_a_sequence_is_a_block(server: Server) -> None:
    with Client(server.grpc, timeout=20) as client:
        with client.sequence("sums") as sequence:
            first = sequence.infer(x(1))
            assert first["who"].item() == sequence.id
            assert first["told"].item() == 1100
            assert [sequence.infer(x(value))["y"].item() for value in (2, 3)] == [3, 6]
            last = sequence.infer(x(4), ["y", "told"], last=True)
            assert (last["y"].item(), last["told"].item()) == (10, 1010)
        with client.sequence("sums", id=7) as sequence:
            assert sequence.infer(x(5))["who"].item() == 7


async def test_a_block_that_is_left_makes_room_for_the_next_sequence(server: Server) -> None:
    """The server would keep the slot for a minute."""

    async def one(value: float) -> list[float]:
        async with client.sequence("sums") as sequence:
            return [(await sequence.infer(x(value)))["y"].item() for _ in range(3)]

    async with AsyncClient(server.grpc, timeout=20) as client:
        found = await asyncio.gather(*(one(value) for value in range(1, 5)))
    assert found == [[value, 2 * value, 3 * value] for value in range(1, 5)]


def test_the_servers_time_for_a_request_of_a_pipeline_runs_out(server: Server) -> None:
    inputs = {"x": np.ones((1, 4), np.float32), "steps": np.array([20 * SECOND])}
    with Client(server.grpc) as client, client.pipeline() as pipeline:
        late = pipeline.infer("slow", inputs, timeout=0.5)
        with pytest.raises(DeadlineExceeded, match="'slow' gave no answer"):
            late.result(20)
