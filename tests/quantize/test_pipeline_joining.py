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
from ds_quantize import data
from ds_quantize.evaluate import Options, engines, joining
from ds_quantize.forms import OnnxModel


@pytest.mark.slow
def test_a_dynamically_quantized_model_is_served_in_the_batches_it_was_judged_in(
    tmp_path: Path,
) -> None:
    shop = workshop(tmp_path)
    made = ds_quantize.quantize(
        shop.folder / "net.onnx",
        "int8-dynamic",
        evaluation=shop.folder / "eval.npz",
        metric="cosine",
        output=shop.models / "net",
        settings=ds_quantize.Settings(
            work=shop.folder / "work", threads=1, options=Options(seconds=0.02, memory=False)
        ),
    )
    assert made.evaluation is not None
    assert made.version is not None
    assert made.evaluation.joined_rows == joining.ROWS
    assert set(made.evaluation.speedups) == {1, 8, 32}
    assert any(f"judged in batches of {joining.ROWS}" in note for note in made.evaluation.notes)

    spec = ModelSpec(
        name="net",
        engine="onnxruntime",
        artifact=made.version / "model.onnx",
        batch=BatchPolicy(max_batch_size=64),
    )
    engine = load(spec, EngineOptions())
    assert engine.spec.batch.max_batch_size == 0
    path = shop.models / "net" / "config.pbtxt"
    served = config_pbtxt.apply(engine.spec, config_pbtxt.read(path), str(path))
    assert served.batch.max_batch_size == joining.ROWS
    assert served.inputs[0].batch_axis == served.outputs[0].batch_axis == 0
    engine.close()


def disturbed(folder: Path, share: float) -> OnnxModel:
    """The net with `share` of the batch's mean added to each row's answer, and some noise."""
    proto = onnx.load(folder / "net.onnx")
    last = proto.graph.node[-1]
    last.output[0] = "alone"
    noise = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32) / 5
    for name, values in (("share", np.float32(share)), ("noise", noise)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), name))
    proto.graph.node.extend(
        [
            onnx.helper.make_node("ReduceMean", ["alone"], ["mean"], axes=[0], keepdims=1),
            onnx.helper.make_node("Mul", ["mean", "share"], ["some"]),
            onnx.helper.make_node("Add", ["alone", "some"], ["more"]),
            onnx.helper.make_node("Add", ["more", "noise"], ["y"]),
        ]
    )
    onnx.save(proto, folder / f"disturbed-{share}.onnx")
    return OnnxModel(folder / f"disturbed-{share}.onnx")


@pytest.mark.parametrize(("share", "joins"), [(0.05, True), (0.5, False)])
def test_rows_that_change_one_another_much_are_not_joined(
    share: float, joins: bool, tmp_path: Path
) -> None:
    workshop(tmp_path)
    original = engines.opened(OnnxModel(tmp_path / "net.onnx"), 1)
    candidate = engines.opened(disturbed(tmp_path, share), 1)
    assert candidate.spec.inputs[0].batch_axis is None
    found = joining.joined(original, candidate, data.load(str(tmp_path / "eval.npz")))
    assert (found is not None) is joins
    assert joining.joined(original, original, data.load(str(tmp_path / "eval.npz"))) is None
