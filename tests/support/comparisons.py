"""Small classifiers to compare, and what an evaluation is given besides them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import helper
from onnx_models import FLOAT, _constant, _value, save

from ds_quantize.context import Context
from ds_quantize.evaluate import Options
from ds_quantize.forms import OnnxModel
from ds_quantize.progress import Silent

FEATURES, CLASSES = 16, 4
QUICK = Options(batches=(1, 8), seconds=0.02, repeats=2, memory=False, layer_rows=4)


def weights(noise: float = 0.0) -> np.ndarray:
    """FP32[16, 4], the same each time but for the noise."""
    random = np.random.default_rng(0)
    given = random.standard_normal((FEATURES, CLASSES))
    return (given + noise * random.standard_normal(given.shape)).astype(np.float32)


def classifier(
    path: Path, weight: np.ndarray | None = None, batch: int | str = "batch"
) -> OnnxModel:
    """x FP32[batch, 16] to logits FP32[batch, 4], in two layers."""
    weight = weights() if weight is None else weight
    save(
        path,
        [
            helper.make_node("MatMul", ["x", "eye"], ["h"], name="first"),
            helper.make_node("MatMul", ["h", "w"], ["logits"], name="second"),
        ],
        [_value("x", FLOAT, [batch, FEATURES])],
        [_value("logits", FLOAT, [batch, CLASSES])],
        [_constant("eye", np.eye(FEATURES, dtype=np.float32)), _constant("w", weight)],
    )
    return OnnxModel(path)


def broken(path: Path) -> OnnxModel:
    """As `classifier`, but for rows whose first feature is below zero, which become NaN."""
    save(
        path,
        [
            helper.make_node("MatMul", ["x", "eye"], ["h"], name="first"),
            helper.make_node("Slice", ["h", "zero", "one", "one"], ["top"]),
            helper.make_node("Sqrt", ["top"], ["root"]),
            helper.make_node("Mul", ["root", "nothing"], ["none"]),
            helper.make_node("MatMul", ["h", "w"], ["plain"], name="second"),
            helper.make_node("Add", ["plain", "none"], ["logits"]),
        ],
        [_value("x", FLOAT, ["batch", FEATURES])],
        [_value("logits", FLOAT, ["batch", CLASSES])],
        [
            _constant("eye", np.eye(FEATURES, dtype=np.float32)),
            _constant("w", weights()),
            _constant("nothing", np.zeros(1, np.float32)),
            _constant("zero", np.array([0], np.int64)),
            _constant("one", np.array([1], np.int64)),
        ],
    )
    return OnnxModel(path)


def rows(count: int, wrong: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features, and labels that `classifier` is right about, but for the first `wrong` rows."""
    features = np.random.default_rng(1).standard_normal((count, FEATURES)).astype(np.float32)
    labels = (features @ weights()).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % CLASSES
    return features, labels


def saved(path: Path, count: int = 200, wrong: int = 20) -> str:
    """Such rows in a file."""
    features, labels = rows(count, wrong)
    np.savez(path, x=features, labels=labels)
    return str(path)


def context(folder: Path, threads: int = 1) -> Context:
    return Context(
        folder=folder, progress=Silent(), original=OnnxModel(folder / "m.onnx"), threads=threads
    )


def lines(path: Path, texts: Sequence[str]) -> str:
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return str(path)
