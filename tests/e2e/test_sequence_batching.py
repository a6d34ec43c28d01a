"""Sequences in the whole server: requests in order, slots, controls, and state that it keeps."""

from __future__ import annotations

import asyncio
import queue
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import onnxruntime
import pytest
import speech
import tritonclient.grpc as triton
from onnx_models import told_sums
from serving import Server
from slow_requests import until_waiting
from triton_clients import connected

from ds_serve import catalogue

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.filterwarnings("ignore:Unclosed connection")

SUMS = """max_batch_size: 4
sequence_batching {
    %s
    control_input { name: "start" control {
        kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } }
    control_input { name: "end" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [0, 1] } }
    control_input { name: "ready" control {
        kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] } }
    control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: %s } }
    state { input_name: "state" output_name: "next" data_type: TYPE_FP32 dims: [1] %s }
}
"""
TEN = 'initial_state { name: "ten" data_type: TYPE_FP32 dims: [1] data_file: "ten" }'

VAD = """max_batch_size: 64
sequence_batching {
    %s
    state { input_name: "state" output_name: "stateN" data_type: TYPE_FP32 dims: [2, 128]
        initial_state { name: "silence" data_type: TYPE_FP32 dims: [2, 128] zero_data: true } }
}
parameters { key: "batch_axis.state" value { string_value: "1" } }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("sequences")
    idle = "max_sequence_idle_microseconds: 60000000"
    sums = {
        "sums": SUMS % (idle, "TYPE_UINT64", ""),
        "named": SUMS % (idle, "TYPE_STRING", TEN),
        "brief": SUMS % ("max_sequence_idle_microseconds: 300000", "TYPE_UINT64", ""),
    }
    for name, config in sums.items():
        told_sums(folder / name / "model.onnx", text=name == "named")
        (folder / name / "config.pbtxt").write_text(config)
    for name, strategy in {
        "vad": "oldest { max_candidate_sequences: 64 max_queue_delay_microseconds: 3000 }",
        "vad-direct": "direct { }",
    }.items():
        (folder / name).mkdir()
        shutil.copy(catalogue.fetch("silero-vad"), folder / name / "model.onnx")
        (folder / name / "config.pbtxt").write_text(VAD % strategy)
    (folder / "named" / "initial_state").mkdir()
    (folder / "named" / "initial_state" / "ten").write_bytes(np.float32(10).tobytes())
    names = [*sums, "vad", "vad-direct"]
    with Server(*(flag for name in names for flag in ("--model", folder / name))) as server:
        yield server


def post(server: Server, model: str, value: float, **parameters: Any) -> httpx2.Response:
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}],
        "parameters": parameters,
    }
    return server.client.post(f"{server.http}/v2/models/{model}/infer", json=body)


def outputs(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"][0] for output in answer.json()["outputs"]}


def test_the_model_is_told_where_in_its_sequence_a_request_is(server: Server) -> None:
    found = [
        outputs(post(server, "sums", value, sequence_id=7, sequence_start=first, sequence_end=last))
        for value, first, last in [(1, True, False), (2, False, False), (3, False, True)]
    ]
    assert [each["y"] for each in found] == [1, 3, 6]
    assert [each["told"] for each in found] == [1100, 1000, 1010]  # ready, start, end
    assert [each["who"] for each in found] == [7, 7, 7]
    assert set(found[0]) == {"y", "told", "who"}, "the state stays in the server"


def test_a_name_and_an_initial_state_from_a_file(server: Server) -> None:
    start = outputs(post(server, "named", 1, sequence_id="left", sequence_start=True))
    assert (start["y"], start["who"]) == (11, "left")
    assert outputs(post(server, "named", 1, sequence_id="left", sequence_end=True))["y"] == 12
    refused = post(server, "named", 1, sequence_id=5, sequence_start=True)
    assert (refused.status_code, "must be a text" in refused.json()["error"]) == (400, True)


def test_a_new_start_begins_anew(server: Server) -> None:
    assert outputs(post(server, "sums", 5, sequence_id=8, sequence_start=True))["y"] == 5
    assert outputs(post(server, "sums", 2, sequence_id=8))["y"] == 7
    assert outputs(post(server, "sums", 1, sequence_id=8, sequence_start=True))["y"] == 1
    assert outputs(post(server, "sums", 1, sequence_id=8, sequence_end=True))["y"] == 2


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"sequence_id": 99}, "sequence 99 to model 'sums' must specify the START flag"),
        ({}, "must name its own with sequence_id"),
        ({"sequence_start": True}, "must name its own with sequence_id"),
    ],
)
def test_what_is_no_sequence_is_refused(
    server: Server, parameters: dict[str, Any], said: str
) -> None:
    refused = post(server, "sums", 1, **parameters)
    assert refused.status_code == 400
    assert said in refused.json()["error"]


def test_a_sequence_that_has_ended_must_start_again(server: Server) -> None:
    post(server, "sums", 1, sequence_id=3, sequence_start=True, sequence_end=True)
    assert post(server, "sums", 1, sequence_id=3).status_code == 400


def test_a_sequence_waits_until_a_slot_is_free(server: Server) -> None:
    """There are four: the fifth sequence waits for the end of one of them."""
    for number in range(1, 5):
        outputs(post(server, "sums", 1, sequence_id=number, sequence_start=True))
    with ThreadPoolExecutor(1) as pool:
        fifth = pool.submit(
            post, server, "sums", 9, sequence_id=5, sequence_start=True, sequence_end=True
        )
        outputs(post(server, "sums", 1, sequence_id=1))
        assert not fifth.done()
        outputs(post(server, "sums", 1, sequence_id=1, sequence_end=True))
        assert outputs(fifth.result())["y"] == 9
    for number in range(2, 5):
        outputs(post(server, "sums", 1, sequence_id=number, sequence_end=True))


def test_a_request_that_is_dropped_breaks_its_sequence_off(server: Server) -> None:
    """Its first request waits for a slot until its time is over; the second must not run alone."""
    for number in range(1, 5):
        outputs(post(server, "sums", 1, sequence_id=number, sequence_start=True))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            post, server, "sums", 1, sequence_id=5, sequence_start=True, timeout=1_000_000
        )
        until_waiting(server, 1, "sums")
        second = post(server, "sums", 2, sequence_id=5)
        assert first.result().status_code == 504
    third = post(server, "sums", 2, sequence_id=5)
    for number in range(1, 5):
        outputs(post(server, "sums", 1, sequence_id=number, sequence_end=True))
    assert (second.status_code, third.status_code) == (400, 400)
    assert "sequence 5 was broken off" in second.json()["error"]
    assert "START flag" in third.json()["error"]


def test_an_idle_sequence_gives_its_slot_to_one_that_waits(server: Server) -> None:
    for number in range(1, 5):
        outputs(post(server, "brief", 1, sequence_id=number, sequence_start=True))
    fifth = outputs(post(server, "brief", 9, sequence_id=5, sequence_start=True, sequence_end=True))
    assert fifth["y"] == 9
    assert post(server, "brief", 1, sequence_id=1).status_code == 400


def test_clients_see_the_model_without_the_servers_own_tensors(server: Server) -> None:
    about = server.get("/v2/models/sums").json()
    assert [tensor["name"] for tensor in about["inputs"]] == ["x"]
    assert [tensor["name"] for tensor in about["outputs"]] == ["y", "told", "who"]
    told = server.get("/v2/models/sums/config").json()["sequence_batching"]
    assert told["max_sequence_idle_microseconds"] == 60_000_000
    assert [control["name"] for control in told["control_input"]] == ["start", "end", "ready", "id"]


def test_a_stream_carries_several_sequences(server: Server) -> None:
    """NVIDIA's client, requests of three sequences in turn, without waiting for answers."""
    answers: queue.Queue[Any] = queue.Queue()
    values = np.arange(1, 11, dtype=np.float32)
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for step, value in enumerate(values):
            given = triton.InferInput("x", [1, 1], "FP32")
            given.set_data_from_numpy(np.array([[value]], np.float32))
            for sequence in (101, 102, 103):
                client.async_stream_infer(
                    "sums",
                    [given],
                    request_id=f"{sequence}-{step}",
                    sequence_id=sequence,
                    sequence_start=step == 0,
                    sequence_end=step == len(values) - 1,
                )
        found = [answers.get(timeout=30) for _ in range(3 * len(values))]
        client.stop_stream()
    sums = {each.get_response().id: each.as_numpy("y").item() for each in found}
    totals = np.cumsum(values)
    assert sums == {f"{s}-{n}": totals[n] for s in (101, 102, 103) for n in range(len(values))}


# Silero VAD, whose state a client need not carry any more.

CHUNK, CONTEXT = 512, 64


def chunks(sound: Array) -> list[Array]:
    """Each of 512 samples, with the 64 before it."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), sound])
    count = len(sound) // CHUNK
    return [padded[None, n * CHUNK : (n + 1) * CHUNK + CONTEXT] for n in range(count)]


def alone(sound: Array) -> list[float]:
    """ONNX Runtime itself, the state carried by hand."""
    session = onnxruntime.InferenceSession(catalogue.fetch("silero-vad"))
    state = np.zeros((2, 1, 128), np.float32)
    found = []
    for chunk in chunks(sound):
        rate = np.array(speech.RATE, np.int64)
        probability, state = session.run(None, {"input": chunk, "state": state, "sr": rate})
        found.append(float(probability.item()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vad", "vad-direct"])
@pytest.mark.parametrize("kind", ["grpc-aio", pytest.param("http-aio", marks=pytest.mark.slow)])
async def test_vad_hears_32_streams_at_once_as_it_hears_each_alone(
    server: Server, kind: str, model: str
) -> None:
    voices = [("ai", 110.0), ("ie", 190.0), ("oi", 150.0), ("ei", 210.0)]
    said = [speech.babble(vowels, pitch, 0.6) for vowels, pitch in voices]
    sounds = [
        np.roll(said[n % 4], -137 * n) if n % 8 else speech.noise(0.6, 0.05) for n in range(32)
    ]
    async with connected(kind, server) as client:

        async def heard(number: int, sound: Array) -> list[float]:
            found = []
            parts = chunks(sound)
            for step, chunk in enumerate(parts):
                result = await client.infer(
                    model,
                    {"input": chunk, "sr": np.array(speech.RATE, np.int64)},
                    sequence_id=number,
                    sequence_start=step == 0,
                    sequence_end=step == len(parts) - 1,
                )
                assert result.as_numpy("stateN") is None
                found.append(float(result.as_numpy("output").item()))
            return found

        before = await counts(client, model)
        found = await asyncio.gather(*(heard(n + 1, sound) for n, sound in enumerate(sounds)))
        after = await counts(client, model)
    rows = after[0] - before[0]
    assert rows == 32 * (len(sounds[0]) // CHUNK)
    assert after[1] - before[1] < rows / 2, "they shared batches"
    for sound, probabilities in zip(sounds, found, strict=True):
        np.testing.assert_allclose(probabilities, alone(sound), atol=1e-4)


async def counts(client: Any, model: str) -> tuple[int, int]:
    """Rows and executions so far."""
    (found,) = (await client.call("get_inference_statistics", model))["model_stats"]
    return int(found.get("inference_count", 0)), int(found.get("execution_count", 0))
