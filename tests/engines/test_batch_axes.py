"""Which models are batched, and along which axes: told by real files in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_models
import pytest

from ds_engines.base import EngineOptions, load
from ds_engines.spec import BatchPolicy, ModelSpec

Build = Callable[[Path], Path]


def described(build: Build, folder: Path) -> ModelSpec:
    artifact = build(folder / "model.onnx")
    policy = BatchPolicy(max_batch_size=16)
    engine = load(ModelSpec("m", "onnxruntime", artifact, batch=policy), EngineOptions())
    spec = engine.spec
    engine.close()
    return spec


def axes(spec: ModelSpec) -> dict[str, int | None]:
    return {tensor.name: tensor.batch_axis for tensor in (*spec.inputs, *spec.outputs)}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (onnx_models.mlp, {"x": 0, "y": 0}),
        (onnx_models.unnamed_axes, {"x": 0, "y": 0}),
        (onnx_models.sequences, {"x": 0, "double": 0, "total": 0}),
        (onnx_models.picky_length, {"x": 0, "y": 0}),
        (onnx_models.slow, {"x": 0, "steps": None, "y": 0}),
        (onnx_models.recurrent, {"x": 0, "state": 1, "scale": None, "y": 0, "next_state": 1}),
    ],
)
def test_models_whose_rows_are_independent_are_batched(
    tmp_path: Path, build: Build, expected: dict[str, int | None]
) -> None:
    spec = described(build, tmp_path)
    assert spec.batch.max_batch_size == 16
    assert axes(spec) == expected


@pytest.mark.parametrize(
    "build",
    [
        onnx_models.fixed,
        onnx_models.running_total,
        onnx_models.centred,
        onnx_models.summed,
    ],
)
def test_models_whose_rows_are_not_are_left_alone(tmp_path: Path, build: Build) -> None:
    spec = described(build, tmp_path)
    assert spec.batch.max_batch_size == 0
    assert set(axes(spec).values()) == {None}


@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "INT64", "FP16", "BF16", "FP64"])
def test_rows_that_change_places_show(tmp_path: Path, datatype: str) -> None:
    spec = described(lambda path: onnx_models.shifted(path, datatype), tmp_path)
    assert spec.batch.max_batch_size == 0


@pytest.mark.parametrize("operator", ["Add", "Max"])
@pytest.mark.parametrize("datatype", ["INT32", "INT64", "FP32"])
def test_rows_that_mix_with_their_neighbours_show(
    tmp_path: Path, datatype: str, operator: str
) -> None:
    spec = described(lambda path: onnx_models.shifted(path, datatype, operator), tmp_path)
    assert spec.batch.max_batch_size == 0


@pytest.mark.parametrize("names", [onnx_models.PLAIN, onnx_models.HALVES])
def test_every_datatype_can_be_tried(tmp_path: Path, names: tuple[str, ...]) -> None:
    spec = described(lambda path: onnx_models.identities(path, names), tmp_path)
    assert spec.batch.max_batch_size == 16
    assert set(axes(spec).values()) == {0}


def test_the_catalogue_models_are_batched() -> None:
    from ds_serve import catalogue

    magika = described(lambda _: catalogue.fetch("magika"), Path())
    assert axes(magika) == {"bytes": 0, "target_label": 0}
    vad = described(lambda _: catalogue.fetch("silero-vad"), Path())
    assert axes(vad) == {"input": 0, "state": 1, "sr": None, "output": 0, "stateN": 1}
    assert magika.batch.max_batch_size == vad.batch.max_batch_size == 16
