"""Whole recipes on a network that reads digits: what they make is judged as a built engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from digits import Net, held_out, trained, training

import ds_quantize
from ds_quantize import Quantized, Settings
from ds_quantize.evaluate import Options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

QUICK = Options(batches=(8,), seconds=0.05, repeats=1, memory=False, layer_rows=0)

QAT = """
extends: qat-int8
steps:
  - method: qat-int8
    epochs: 2
"""

SPARSE = """
extends: sparse-2-4
steps:
  - method: sparsity-2-4
    epochs: 5
    learning_rate: 2e-3
"""

PRUNED = """
extends: prune-distill
steps:
  - method: prune-channels
    norm: 1
    keep: 0.25
    steps: 3
    epochs: 3
    learning_rate: 4e-3
  - method: distill-logits
    epochs: 20
    learning_rate: 6e-3
"""


def quantized(recipe: str, folder: Path, size: int = 16) -> Quantized:
    """By a recipe's name or text; GateError where its limits are not kept."""
    if "\n" in recipe:
        (folder / "mine.yaml").write_text(recipe)
        recipe = str(folder / "mine.yaml")
    model = trained(Net, size)
    settings = Settings(work=folder / "work", threads=1, options=QUICK)
    return ds_quantize.quantize(
        (model.module, model.example),
        recipe,
        training(),
        evaluation=held_out(),
        output=folder / "models" / "digits",
        settings=settings,
    )


def change(made: Quantized) -> tuple[float, float]:
    """The accuracies before and after, on the rows that no training has seen."""
    assert made.evaluation is not None
    assert made.verdict is not None
    assert made.verdict.passed
    quality = made.evaluation.metrics[0]
    assert made.evaluation.rows == 500
    assert quality.baseline is not None
    return quality.baseline.value, quality.candidate.value


@pytest.mark.parametrize("recipe", ["int8", QAT], ids=["ptq", "qat"])
def test_int8_within_one_percent(recipe: str, tmp_path: Path) -> None:
    made = quantized(recipe, tmp_path)
    before, after = change(made)
    assert before > 0.97
    assert after >= before - 0.01
    assert made.evaluation is not None
    assert made.evaluation.size < 0.6


def test_two_of_four_within_one_percent(tmp_path: Path) -> None:
    before, after = change(quantized(SPARSE, tmp_path))
    assert after >= before - 0.01


def test_pruned_and_taught_to_a_third_within_one_and_a_half_percent(tmp_path: Path) -> None:
    made = quantized(PRUNED, tmp_path, size=24)
    before, after = change(made)
    assert after >= before - 0.015
    assert made.evaluation is not None
    assert made.evaluation.size <= 0.3
    assert (tmp_path / "models/digits/1/manifest.json").is_file()
