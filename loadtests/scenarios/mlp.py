"""The tiny model of loadtests.model: hardly any work, so that the server itself is loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime

from loadtests import model as tiny
from loadtests.scenarios import Arrays

ROWS = 256


def model(folder: Path, **options: object) -> str:
    """Raises ValueError: there are no options."""
    if options:
        raise ValueError(f"there is no option {next(iter(options))!r}; mlp has none")
    path = folder / "mlp.onnx"
    tiny.write(path)
    return f"mlp={path}"


def requests(seed: int) -> Iterator[Arrays]:
    """x float32 [1, 64]."""
    rows = np.random.default_rng(seed).random((ROWS, 1, tiny.FEATURES), dtype=np.float32)
    while True:
        for row in rows:
            yield {tiny.INPUT: row}


def check(inputs: Arrays, outputs: Arrays) -> str | None:
    """Beside what ONNX Runtime gives here."""
    (want,) = _session().run(None, inputs)
    got = outputs.get(tiny.OUTPUT)
    if got is None or got.shape != want.shape:
        return f"{tiny.OUTPUT} is {'missing' if got is None else list(got.shape)}"
    far = float(np.abs(got - want).max())
    return None if far < 1e-3 else f"{tiny.OUTPUT} is off by {far:.3g}"


@cache
def _session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mlp.onnx")
        tiny.write(path)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
