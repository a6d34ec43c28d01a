"""Quantized models whose rows change one another a little are still batched, and judged so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from quantizing import workshop

import ds_quantize
from ds_engines import config_pbtxt
from ds_engines.base import EngineOptions, load
from ds_engines.spec import BatchPolicy, ModelSpec
from ds_quantize import data, pipeline, promotion
from ds_quantize.evaluate import Options, engines, joining
from ds_quantize.forms import OnnxModel
from ds_quantize.progress import Silent
from ds_quantize.recipe import Recipe
from ds_quantize.stages import Stages

QUICK = Options(seconds=0.02, memory=False, layer_rows=0)


def disturbed(folder: Path, rows: float, loudest: float = 0.0) -> OnnxModel:
    """The net with shares of how full the batch is, and of its loudest input, added to each
    answer, and some noise.
    """
    proto = onnx.load(folder / "net.onnx")
    graph, node = proto.graph, onnx.helper.make_node
    graph.node[-1].output[0] = "alone"
    noise = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32) / 5
    values = {"noise": noise, "rows": rows / joining.ROWS, "loudest": loudest}
    for name, value in values.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.float32), name))
    graph.node.extend(
        [
            node("ReduceMax", [graph.input[0].name], ["peak"], keepdims=0),
            node("Shape", ["alone"], ["shape"], end=1),
            node("Cast", ["shape"], ["count"], to=onnx.TensorProto.FLOAT),
            node("Mul", ["count", "rows"], ["by_rows"]),
            node("Mul", ["peak", "loudest"], ["by_peak"]),
            node("Sum", ["alone", "by_rows", "by_peak", "noise"], ["y"]),
        ]
    )
    path = folder / f"disturbed-{rows}-{loudest}.onnx"
    onnx.save(proto, path)
    return OnnxModel(path)


@pytest.mark.parametrize(
    ("rows", "loudest", "joins"), [(0.02, 0.0, True), (0.5, 0.0, False), (0.02, 0.005, False)]
)
def test_rows_are_joined_that_change_one_another_little_whatever_they_hold(
    rows: float, loudest: float, joins: bool, tmp_path: Path
) -> None:
    workshop(tmp_path)
    original = engines.opened(OnnxModel(tmp_path / "net.onnx"), 1)
    candidate = engines.opened(disturbed(tmp_path, rows, loudest), 1)
    assert candidate.spec.inputs[0].batch_axis is None
    found = joining.joined(original, candidate, data.load(str(tmp_path / "eval.npz")))
    assert (found is not None) is joins
    assert joining.joined(original, original, data.load(str(tmp_path / "eval.npz"))) is None


@pytest.mark.slow
def test_such_a_model_is_served_in_the_batches_it_was_judged_in(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    rows = data.load(str(shop.folder / "eval.npz"))
    job = pipeline.Job(str(shop.folder / "net.onnx"), evaluation=rows, threads=1, options=QUICK)
    opened = pipeline.opened(job, Stages(tmp_path / "work", Silent()))
    made = pipeline.Keyed(disturbed(tmp_path, 0.02), "key")
    plan = Recipe("disturbed", metric="cosine")
    result = promotion.proven(opened, pipeline.Candidate(plan, made, made))
    version = promotion.promote(opened, result, shop.models / "net")
    evaluation = result.evaluation
    assert evaluation.joined_rows == joining.ROWS
    assert set(evaluation.speedups) == {1, 8, 32}
    assert any(f"judged in batches of {joining.ROWS}" in note for note in evaluation.notes)
    served = configured(shop.models / "net", version)
    assert served.batch.max_batch_size == joining.ROWS
    assert served.inputs[0].batch_axis == served.outputs[0].batch_axis == 0


@pytest.mark.slow
def test_rows_of_a_model_with_the_ranges_of_a_batch_are_not_joined(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    made = ds_quantize.quantize(
        shop.folder / "net.onnx",
        "int8-dynamic",
        evaluation=shop.folder / "eval.npz",
        metric="cosine",
        output=shop.models / "net",
        settings=ds_quantize.Settings(work=shop.folder / "work", threads=1, options=QUICK),
    )
    assert made.evaluation is not None
    assert made.version is not None
    assert made.evaluation.joined_rows == 0
    assert set(made.evaluation.speedups) == {1}
    assert any("rows depend on one another" in note for note in made.evaluation.notes)
    assert configured(shop.models / "net", made.version).batch.max_batch_size == 0


def configured(folder: Path, version: Path) -> ModelSpec:
    """As the server has it: what the engine finds, and what stands in config.pbtxt."""
    spec = ModelSpec(
        name=folder.name,
        engine="onnxruntime",
        artifact=version / "model.onnx",
        batch=BatchPolicy(max_batch_size=64),
    )
    engine = load(spec, EngineOptions())
    assert engine.spec.batch.max_batch_size == 0
    path = folder / "config.pbtxt"
    served = config_pbtxt.apply(engine.spec, config_pbtxt.read(path), str(path))
    engine.close()
    return served
