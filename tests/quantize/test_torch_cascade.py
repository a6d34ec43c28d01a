"""A small and a large model as one."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_models
import pytest
import tritonclient.grpc
from digits import Dense, Net, answers, apply, held_out, trained, training
from serving import Server

from ds_engines import manifest
from ds_engines.base import Array
from ds_quantize.cascade import lowest
from ds_quantize.errors import MethodError
from ds_quantize.forms import OnnxModel
from ds_quantize.torch_export import to_onnx

PROGRAM = Path(sys.executable).with_name("ds-quantize")


@dataclass(frozen=True)
class Pair:
    """`small.onnx`, `large.onnx` and the rows that neither has seen, `test.npz`."""

    folder: Path

    @property
    def small(self) -> Path:
        return self.folder / "small.onnx"

    @property
    def large(self) -> Path:
        return self.folder / "large.onnx"

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, "cascade", *words, "--work", "work", "--seconds", "0.02", "--threads", "1"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    made = Pair(tmp_path_factory.mktemp("pair"))
    to_onnx(trained(Net, 5), made.small)
    to_onnx(trained(), made.large)
    np.savez(made.folder / "test.npz", **held_out())
    return made


@pytest.fixture(scope="module")
def images() -> Array:
    return held_out()["image"]


@pytest.mark.slow
def test_most_are_answered_by_the_small_model_as_well_as_by_the_large(
    pair: Pair, images: Array
) -> None:
    done = pair.command(
        *("small.onnx", "large.onnx", "-o", "models/digits"),
        *("--threshold", "auto", "--evaluation", "test.npz"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed its gate" in done.stdout
    said = manifest.admit(pair.folder / "models/digits/1")
    assert said is not None
    assert said.measured["steps"][0]["answered_by_small"] >= 0.7

    with Server("--model-repository", pair.folder / "models") as server:
        sizes = [1, 2, 7, 16, 30, 64] * 5
        parts = np.split(images, np.cumsum(sizes))
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda part: _asked(server.grpc, part), parts))
    scores, escalated = (np.concatenate(each) for each in zip(*found, strict=True))

    labels = held_out()["labels"]
    small, large = (
        float((answers(path, images)["logits"].argmax(1) == labels).mean())
        for path in (pair.small, pair.large)
    )
    assert 1 - escalated.mean() >= 0.7
    assert (scores.argmax(1) == labels).mean() >= large > small


def _asked(address: str, part: Array) -> tuple[Array, Array]:
    if not len(part):
        return np.zeros((0, 10), np.float32), np.zeros(0, bool)
    with tritonclient.grpc.InferenceServerClient(address) as client:
        tensor = tritonclient.grpc.InferInput("image", list(part.shape), "FP32")
        tensor.set_data_from_numpy(part)
        answer = client.infer("digits", [tensor])
        scores, escalated = answer.as_numpy("logits"), answer.as_numpy("escalated")
    assert scores is not None
    assert escalated is not None
    return scores, escalated


@pytest.mark.slow
def test_each_row_is_answered_by_the_one_that_says_so(
    pair: Pair, images: Array, tmp_path: Path
) -> None:
    large = OnnxModel(pair.large)
    made, measured = apply("cascade", large, tmp_path, small=str(pair.small), threshold=0.9)
    assert measured["threshold"] == 0.9
    found = answers(made.path, images)
    own, theirs = (answers(path, images)["logits"] for path in (pair.small, pair.large))
    asked = found["escalated"]
    assert 0 < asked.sum() < len(images)
    np.testing.assert_allclose(found["logits"][asked], theirs[asked], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["logits"][~asked], own[~asked], rtol=1e-4, atol=1e-4)
    sure = np.exp(own).max(1) / np.exp(own).sum(1)
    assert np.array_equal(asked, sure < 0.9)
    for row in (np.flatnonzero(asked)[0], np.flatnonzero(~asked)[0]):
        alone = answers(made.path, images[row : row + 1])
        np.testing.assert_allclose(alone["logits"][0], found["logits"][row], rtol=1e-4, atol=1e-4)
        assert alone["escalated"].tolist() == [asked[row]]


@pytest.mark.slow
def test_other_names_for_inputs_and_outputs_go_by_their_place(
    pair: Pair, images: Array, tmp_path: Path
) -> None:
    model = trained(Dense, 32, 5)
    other = type(model)(model.module, {"x": model.example["image"]}, ("y",), {"x": {0: "n"}})
    small = to_onnx(other, tmp_path / "dense.onnx").path
    made, measured = apply("cascade", OnnxModel(pair.large), tmp_path, small=str(small))
    assert set(answers(made.path, images)) == {"logits", "escalated"}
    assert measured["accuracy"] >= measured["accuracy_large"] > measured["accuracy_small"]


@pytest.mark.slow
def test_models_that_do_not_fit(pair: Pair, tmp_path: Path) -> None:
    other = onnx_models.mlp(tmp_path / "mlp.onnx")
    with pytest.raises(MethodError, match="cascade"):
        apply("cascade", OnnxModel(pair.large), tmp_path, small=str(onnx_models.fixed(other)))
    done = pair.command(
        *("small.onnx", "large.onnx", "-o", "models/x", "--evaluation", "test.npz"),
        *("--threshold", "2"),
    )
    assert done.returncode == 1
    assert "--threshold 2: give auto or a probability above 0, up to 1" in done.stderr
    assert not (pair.folder / "models/x").exists()
    done = pair.command(
        *("small.onnx", "large.onnx", "-o", "models/x", "--evaluation", "test.npz"),
        *("--limit", "max_size=1.0"),
    )
    assert done.returncode == 1
    assert "not passed" in done.stdout
    assert not (pair.folder / "models/x").exists()


def test_the_threshold_is_the_lowest_that_loses_nothing() -> None:
    sure = np.array([0.99, 0.9, 0.8, 0.7, 0.6])
    right = np.array([True, True, True, True, True])
    small = np.array([True, True, False, True, True])
    assert lowest(sure, small, right) == pytest.approx(0.85)
    assert lowest(sure, small, right, max_drop=0.2) == pytest.approx(0.3)
    assert lowest(sure, small, small) == pytest.approx(0.3)
    tied = np.array([0.99, 0.8, 0.8, 0.7, 0.6])
    assert lowest(tied, small, right) == pytest.approx(0.895)
    with pytest.raises(MethodError, match="the small model answers worse than the large one"):
        lowest(sure, ~right, right)


def test_without_labels_the_large_model_is_right(pair: Pair, tmp_path: Path) -> None:
    rows = {"image": training()["image"][:200]}
    _, measured = apply(
        "cascade", OnnxModel(pair.large), tmp_path, small=str(pair.small), rows=rows
    )
    assert measured["accuracy_large"] == measured["accuracy"] == 1.0
