"""A module in a Python file, through steps on modules and on ONNX files, into a repository."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ds_quantize
from ds_engines import manifest
from ds_quantize.errors import MethodError, RecipeError
from ds_quantize.evaluate import Options
from ds_quantize.progress import Silent

FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.dense = nn.Linear(16 * 36, 10)

    def forward(self, image):
        return self.dense(torch.relu(self.norm(self.conv(image))).flatten(1))

def factory():
    return Net()
"""

RECIPE = """
summary: a step on the module, then one on the ONNX file
steps: [fuse, int8-static]
metric: cosine
gate: {max_accuracy_drop: 0.05, max_size: 0.5}
"""


class Seen(Silent):
    """Which stages were done, and which were there."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def reused(self, name: str) -> None:
        self.kept.append(name)


@pytest.mark.slow
def test_each_stage_is_kept_also_a_module(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FILE)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    random = np.random.default_rng(0)
    rows = [random.standard_normal((n, 1, 8, 8)).astype(np.float32) for n in (64, 128)]

    def run(recipe: str = "mine") -> tuple[ds_quantize.Quantized, list[str]]:
        seen = Seen()
        settings = ds_quantize.Settings(
            work=tmp_path / "work",
            threads=1,
            options=Options(seconds=0.02, memory=False),
            reporter=seen,
        )
        made = ds_quantize.quantize(
            f"{tmp_path / 'net.py'}:factory",
            tmp_path / f"{recipe}.yaml",
            {"image": rows[0]},
            evaluation={"image": rows[1]},
            output=tmp_path / "models" / "net",
            settings=settings,
        )
        return made, seen.kept

    first, kept = run()
    assert kept == []
    assert first.version is not None
    said = manifest.admit(first.version)
    assert said is not None
    assert [step["method"] for step in said.measured["steps"]] == ["fuse", "int8-static"]
    assert {"torch", "onnxruntime"} <= set(said.libraries)
    record = next((tmp_path / "work").glob("fuse-*")) / "stage.json"
    assert json.loads(record.read_text())["result"]["model"] == {"form": "torch"}

    again, kept = run()
    assert kept == ["export", "fuse", "export", "int8-static", "evaluate"]
    assert again.version == tmp_path / "models" / "net" / "2"

    # Other settings of the last step: those before it are kept.
    changed = RECIPE.replace("int8-static]", "{method: int8-static, per_channel: false}]")
    (tmp_path / "other.yaml").write_text(changed)
    _, kept = run("other")
    assert kept == ["export", "fuse", "export"]

    (tmp_path / "order.yaml").write_text("steps: [int8-static, fuse]")
    with pytest.raises(RecipeError, match="put such steps before those on ONNX files"):
        run("order")
    (tmp_path / "slip.yaml").write_text(
        "steps: [{method: prune-magnitude, exclude: [classifier], epochs: 0}]"
    )
    with pytest.raises(MethodError, match="no layer is called 'classifier'"):
        run("slip")
