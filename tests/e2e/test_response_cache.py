"""The response cache in the whole server: equal requests, tenants apart, bounded and counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.grpc as triton
from onnx_models import mlp
from serving import Server

ROW = 512 + 8 * 4
"""Bytes that one answer is counted with."""

BOUND = 20 * ROW


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("cached")
    flags = ["--cache-config", f"local,size={BOUND}", "--gateways", "2"]
    for name in ("cached", "also", "plain"):
        mlp(folder / name / "model.onnx")
        enabled = "false" if name == "plain" else "true"
        (folder / name / "config.pbtxt").write_text(f"response_cache {{ enable: {enabled} }}")
        flags += ["--model", str(folder / name)]
    with Server(*flags) as server:
        yield server


def post(server: Server, number: int, model: str = "cached", **request: Any) -> httpx2.Response:
    row = np.random.default_rng(number).random(64, np.float32)
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": row.tolist()}],
        **request,
    }
    return server.client.post(f"{server.http}/v2/models/{model}/infer", json=body)


def counted(server: Server, model: str = "cached") -> tuple[int, int, int, int]:
    """Hits, misses, successes and rows run, by the statistics; the metrics say the same."""
    found = server.get(f"/v2/models/{model}/stats").json()["model_stats"][0]
    about = found["inference_stats"]
    hits, misses = about["cache_hit"]["count"], about["cache_miss"]["count"]
    assert hits == server.metric("nv_cache_num_hits_per_model", model=model)
    assert misses == server.metric("nv_cache_num_misses_per_model", model=model)
    return hits, misses, about["success"]["count"], found["inference_count"]


def rise(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(b - a for a, b in zip(before, after, strict=True))


def test_an_equal_request_is_answered_without_the_engine(server: Server) -> None:
    before = counted(server)
    first, second = post(server, 1, id="a"), post(server, 1, id="b")
    assert first.json()["outputs"] == second.json()["outputs"]
    assert (first.json()["id"], second.json()["id"]) == ("a", "b")
    assert rise(before, counted(server)) == (1, 1, 2, 1)


def test_other_inputs_outputs_and_shapes_are_other_requests(server: Server) -> None:
    before = counted(server)
    wanted = [{"name": "y"}]
    answers = [post(server, 2), post(server, 3), post(server, 2, outputs=wanted)]
    assert rise(before, counted(server)) == (1, 2, 3, 2), "all outputs named are all outputs"
    assert answers[0].json()["outputs"] == answers[2].json()["outputs"]
    assert answers[0].json()["outputs"] != answers[1].json()["outputs"]


def test_both_protocols_share_it(server: Server) -> None:
    found = post(server, 4).json()["outputs"][0]["data"]
    before = counted(server)
    given = triton.InferInput("x", [1, 64], "FP32")
    given.set_data_from_numpy(np.random.default_rng(4).random((1, 64), np.float32))
    with triton.InferenceServerClient(server.grpc) as client:
        told = client.infer("cached", [given]).as_numpy("y")
    assert told.ravel().tolist() == pytest.approx(found)
    assert rise(before, counted(server)) == (1, 0, 1, 0)


def test_what_was_used_longest_ago_makes_room(server: Server) -> None:
    for number in range(100, 120):
        post(server, number)
    before = counted(server)
    post(server, 119)
    post(server, 100)
    assert rise(before, counted(server))[:2] == (1, 1)


def test_models_have_answers_of_their_own(server: Server) -> None:
    post(server, 5)
    before = counted(server, "also")
    post(server, 5, "also")
    assert rise(before, counted(server, "also"))[:2] == (0, 1)


def test_a_model_that_does_not_ask_for_it_has_none(server: Server) -> None:
    for _ in range(2):
        post(server, 6, "plain")
    assert counted(server, "plain") == (0, 0, 2, 2)


def test_faults_are_not_kept(server: Server) -> None:
    before = counted(server)
    for _ in range(2):
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
        url = f"{server.http}/v2/models/cached/infer"
        assert server.client.post(url, json=body).status_code == 400
    assert rise(before, counted(server))[:3] == (0, 0, 0)


@pytest.mark.slow
def test_without_bytes_there_is_no_cache_and_the_log_says_so(tmp_path: Path) -> None:
    mlp(tmp_path / "m" / "model.onnx")
    (tmp_path / "m" / "config.pbtxt").write_text("response_cache { enable: true }")
    with Server("--model", tmp_path / "m") as server:
        assert [post(server, 1, "m").status_code for _ in range(2)] == [200, 200]
        assert counted(server, "m") == (0, 0, 2, 2)
        assert "--response-cache-byte-size" in server.log()


@pytest.mark.slow
def test_an_answer_out_of_the_cache_is_traced_too(tmp_path: Path) -> None:
    mlp(tmp_path / "m" / "model.onnx")
    (tmp_path / "m" / "config.pbtxt").write_text("response_cache { enable: true }")
    flags = ["--trace-file", tmp_path / "trace", "--trace-rate", "1"]
    with Server("--model", tmp_path / "m", "--response-cache-byte-size", "9000", *flags) as server:
        assert [post(server, 1, "m").status_code for _ in range(3)] == [200] * 3
        assert counted(server, "m")[:2] == (2, 1)
        server.stop()
        assert "Traceback" not in server.log()
    spans = json.loads((tmp_path / "trace").read_text())
    assert len([span for span in spans if span.get("model_name") == "m"]) == 3
