"""What the server does around TensorRT, on a machine with a stand-in for it and for CUDA."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import onnxruntime
import pytest
import tritonclient.http
from serving import Server, until
from tritonclient.utils import InferenceServerException

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in is put in place of its calls")

NO_GPU = Path(__file__).parents[1] / "support/no_gpu"


class Place:
    """A machine, as far as files and variables make one, and what its stand-ins are told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._says = folder, folder / "says.json"
        self.variables = {
            "PYTHONPATH": str(NO_GPU),
            "CUDA_VISIBLE_DEVICES": "0",
            "DS_SERVE_CACHE": str(folder / "cache"),
            "NO_GPU_SAYS": str(self._says),
        }
        self.say()

    def say(self, **what: Any) -> None:
        self._says.write_text(json.dumps(what))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("place"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.variables.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[Server]:
    """`net` is an ONNX file and nothing else; `moved` a plan of another GPU beside its file."""
    models = place.folder / "models"
    for name in ("net", "large", "moved"):
        onnx_models.mlp(models / f"{name}/1/model.onnx")
    (models / "moved/1/model.plan").write_bytes(b"ptrt" + bytes(99))
    known = {"library": "tensorrt 8.6.1", "gpu": "A100, compute capability 8.0"}
    (models / "moved/1/model.plan.json").write_text(json.dumps(known))
    (models / "moved/config.pbtxt").write_text(
        'parameters { key: "tensorrt.compatible" value { string_value: "true" } }'
    )
    (models / "large/config.pbtxt").write_text("max_batch_size: 4096")
    more = ("--model-control-mode", "explicit", "--open-control", "--load-model=net")
    with Server("--model-repository", models, *more) as made:
        yield made


@pytest.fixture
def client(server: Server, place: Place) -> Iterator[tritonclient.http.InferenceServerClient]:
    place.say()
    with tritonclient.http.InferenceServerClient(server.http_address, concurrency=4) as made:
        yield made


def given(rows: np.ndarray) -> list[tritonclient.http.InferInput]:
    made = tritonclient.http.InferInput("x", list(rows.shape), "FP32")
    made.set_data_from_numpy(rows)
    return [made]


def asked(client: tritonclient.http.InferenceServerClient, rows: np.ndarray, name: str) -> Any:
    return client.infer(name, given(rows)).as_numpy("y")


def rows_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, 64), np.float32)


def wanted(place: Place, rows: np.ndarray) -> Any:
    session = onnxruntime.InferenceSession(place.folder / "models/net/1/model.onnx")
    return session.run(["y"], {"x": rows})[0]


def test_an_onnx_file_is_built_and_served_by_tensorrt_without_being_asked(
    server: Server, client: tritonclient.http.InferenceServerClient, place: Place
) -> None:
    assert client.get_model_metadata("net")["platform"] == "tensorrt_plan"
    assert "so TensorRT builds it for the GPU and runs it there" in server.output() + server.log()
    assert len(list((place.folder / "cache/tensorrt").glob("*.plan"))) == 1
    batches = [rows_of(size) for size in (2, 3, 8) * 6]  # graphs are recorded after four
    asking = [client.async_infer("net", given(rows)) for rows in batches]
    for rows, answer in zip(batches, asking, strict=True):
        found = answer.get_result().as_numpy("y")
        np.testing.assert_allclose(found, wanted(place, rows), rtol=1e-4, atol=1e-5)


def test_where_memory_is_short_a_batch_is_run_in_halves_by_the_same_worker(
    server: Server, client: tritonclient.http.InferenceServerClient, place: Place
) -> None:
    worker, rows = server.worker("net"), rows_of(7)
    place.say(rows=2)
    np.testing.assert_allclose(asked(client, rows, "net"), wanted(place, rows), rtol=1e-4)
    until(lambda: "net: 7 rows again in halves: TensorRT failed" in server.log(), "no halves")
    place.say(rows=0)
    with pytest.raises(InferenceServerException, match=r"(?i)out ?of ?memory") as refused:
        asked(client, rows, "net")
    assert refused.value.status() == "503"
    place.say()
    np.testing.assert_allclose(asked(client, rows, "net"), wanted(place, rows), rtol=1e-4)
    assert server.worker("net") == worker


def test_a_plan_of_another_gpu_is_built_anew_from_the_file_beside_it(
    server: Server, client: tritonclient.http.InferenceServerClient, place: Place
) -> None:
    client.load_model("moved")
    rows = rows_of(2)
    np.testing.assert_allclose(asked(client, rows, "moved"), wanted(place, rows), rtol=1e-4)
    said = r"model\.plan cannot run here: it was built for A100, compute capability 8\.0, and this"
    assert re.search(said + r" is Stand-in.*; model\.onnx is built anew", server.log())


def test_a_plan_that_brings_code_for_the_processor_is_for_those_who_trust_it(
    client: tritonclient.http.InferenceServerClient, place: Place
) -> None:
    (plan,) = (
        each
        for each in (place.folder / "cache/tensorrt").glob("*.plan")
        if each.read_bytes().startswith(b"vtrt")  # what was built here in the test before
    )
    folder = place.folder / "models/given/1"
    folder.mkdir(parents=True)
    (folder / "model.plan").write_bytes(plan.read_bytes())
    with pytest.raises(InferenceServerException, match=r"cannot run here: .* host code"):
        client.load_model("given")


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(
    client: tritonclient.http.InferenceServerClient, place: Place
) -> None:
    place.say(free=260_000_000)
    said = r"'large' does not fit on cuda:0 \(Stand-in\): it needs .* MB \(.*\) beside a reserve of"
    with pytest.raises(InferenceServerException, match=said):
        client.load_model("large")
    place.say()
    client.load_model("large")


@pytest.mark.slow
def test_a_gpu_that_shares_the_hosts_memory_needs_no_copies_and_layers_are_shown(
    place: Place,
) -> None:
    place.say(unified=True)
    path = onnx_models.logarithms(place.folder / "log.onnx")
    with (
        Server("--model", path, "--debug-numerics") as server,
        tritonclient.http.InferenceServerClient(server.http_address) as client,
    ):
        rows = np.array([[1, 2, 3]], np.float32)
        np.testing.assert_allclose(asked(client, rows, "log"), 1 / (np.log(2 * rows) + 4), 1e-4)
        said = r"layer 'block/log' \(Log\) is the first .*: 1 infinite of 3 numbers"
        with pytest.raises(InferenceServerException, match=said):
            asked(client, np.array([[1, 0, 3]], np.float32), "log")
        assert np.isfinite(asked(client, rows, "log")).all()
    place.say()
