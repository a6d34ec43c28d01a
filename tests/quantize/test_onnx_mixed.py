"""Mixed precision: the layers that INT8 harms are found, and they alone are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from quantize_models import Rows, constant, context, model, run

from ds_quantize.forms import OnnxModel
from ds_quantize.methods.onnx import Int8Static, MixedPrecision

WIDTH = 32


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Four products with matrices. The channels that `narrow` takes differ a thousandfold."""
    rng = np.random.default_rng(0)
    spread = np.geomspace(0.03, 30, WIDTH)
    matrices = {
        "widen": rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)) * spread,
        "narrow": rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)) / spread[:, None],
        "calm1": rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)),
        "calm2": rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)),
    }
    nodes, last = [], "x"
    for name in matrices:
        nodes.append(helper.make_node("MatMul", [last, f"{name}_w"], [f"{name}_y"], name))
        last = f"{name}_y"
    shape = ["n", WIDTH]
    proto = model(
        nodes,
        [("x", shape)],
        [(last, shape)],
        [constant(f"{name}_w", values) for name, values in matrices.items()],
    )
    onnx.save(proto, tmp_path / "chain.onnx")
    return tmp_path / "chain.onnx"


def rows() -> Rows:
    values = np.random.default_rng(1).normal(0, 1, (64, WIDTH))
    return Rows({"x": values.astype(np.float32)})


def test_the_layer_that_suffers_is_kept_and_the_ranking_told(chain: Path, tmp_path: Path) -> None:
    method = MixedPrecision(min_sqnr=25, min_cosine=None)
    own = context(tmp_path, chain, rows())
    made = method.load()(OnnxModel(chain), method, own)
    assert isinstance(made, OnnxModel)
    ranking = own.measured["sensitivity"]
    assert ranking[0]["layer"] == "narrow"
    assert [entry["sqnr"] for entry in ranking] == sorted(entry["sqnr"] for entry in ranking)
    assert own.measured["mixed"]["kept"] == ["narrow"]
    assert own.measured["layers"] == {"quantized": 3, "kept": 1}
    quantized = onnx.load(made.path)
    narrow = next(node for node in quantized.graph.node if node.name == "narrow")
    assert narrow.input[1] == "narrow_w"
    assert nearness(chain, made.path) >= 25 > nearness(chain, plain(chain, tmp_path))


def test_a_limit_that_int8_meets_keeps_no_layer(chain: Path, tmp_path: Path) -> None:
    method = MixedPrecision(min_cosine=0.5)
    own = context(tmp_path, chain, rows())
    method.load()(OnnxModel(chain), method, own)
    assert own.measured["mixed"]["kept"] == []


def test_no_more_is_kept_than_the_share(chain: Path, tmp_path: Path) -> None:
    method = MixedPrecision(min_sqnr=80, max_share=0.25)
    own = context(tmp_path, chain, rows())
    method.load()(OnnxModel(chain), method, own)
    assert own.measured["mixed"]["kept"] == ["narrow"]
    assert "1 of 4 layers" in own.progress.said[0]  # type: ignore[attr-defined]


def plain(chain: Path, tmp_path: Path) -> Path:
    method = Int8Static()
    made = method.load()(OnnxModel(chain), method, context(tmp_path, chain, rows()))
    assert isinstance(made, OnnxModel)
    return made.path


def nearness(chain: Path, path: Path) -> float:
    """Decibels of signal over noise on rows that were not calibrated on."""
    inputs = {"x": np.random.default_rng(9).normal(0, 1, (64, WIDTH)).astype(np.float32)}
    wanted, found = (
        next(iter(run(onnx.load(file), inputs).values())).astype(np.float64)
        for file in (chain, path)
    )
    return float(10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum()))
