"""A small model with data that it answers, and `ds-quantize` as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_models
import onnxruntime as ort

RECIPE = """
summary: folded, then INT8
steps:
  - fold
  - int8-static
metric: top-1
gate:
  max_accuracy_drop: 0.1
"""


@dataclass(frozen=True)
class Workshop:
    """A folder with `net.onnx`, `cal.npz`, `eval.npz` (with labels) and `int8.yaml`."""

    folder: Path

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def recipe(self, text: str, name: str = "mine") -> str:
        """Write a recipe; how to name it."""
        (self.folder / f"{name}.yaml").write_text(text)
        return f"./{name}.yaml"

    def words(self, *more: str, recipe: str = "./int8.yaml") -> list[str]:
        """A whole command; a word of `more` comes after the usual ones, and so wins."""
        return [
            *(sys.executable, "-m", "ds_quantize.cli", "net.onnx", "--recipe", recipe),
            *("--calibration", "cal.npz", "--evaluation", "eval.npz", "-o", "models/net"),
            *("--work", "work", "--threads", "1", "--seconds", "0.02", *more),
        ]

    def run(self, *more: str, recipe: str = "./int8.yaml") -> subprocess.CompletedProcess[str]:
        return call(self.words(*more, recipe=recipe), self.folder)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return call([sys.executable, "-m", "ds_quantize.cli", *words], self.folder)

    def start(self, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.words(*more),
            cwd=self.folder,
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


def environment() -> dict[str, str]:
    return os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}


def call(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=folder, env=environment(), text=True, capture_output=True, check=False
    )


def workshop(folder: Path) -> Workshop:
    onnx_models.mlp(folder / "net.onnx")
    session = ort.InferenceSession(folder / "net.onnx")
    random = np.random.default_rng(0)
    for name, rows in (("cal", 100), ("eval", 200)):
        x = random.standard_normal((rows, 64)).astype(np.float32)
        labels = session.run(None, {"x": x})[0].argmax(1)
        np.savez(folder / f"{name}.npz", x=x, labels=labels)
    (folder / "int8.yaml").write_text(RECIPE)
    return Workshop(folder)
