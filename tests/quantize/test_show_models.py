"""Real models through the whole pipeline, with limits; the same cases as `loadtests.quantize`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loadtests.quantize.__main__ import prepared

from ds_engines import manifest
from ds_quantize.api import Quantized, Settings, quantize
from ds_quantize.errors import GateError
from ds_quantize.evaluate import Evaluation, Options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BRIEF = Options(batches=(1, 8), seconds=0.1, repeats=2, memory=False)


def made(name: str, rows: int, folder: Path, recipe: str = "") -> Quantized:
    """Promoted to `folder`/models/NAME."""
    case = prepared(name, folder, rows)
    return quantize(
        case.model,
        recipe or case.recipe,
        case.calibration,
        evaluation=case.evaluation,
        output=folder / "models" / name,
        settings=Settings(work=folder / "work", options=BRIEF),
    )


def proven(result: Quantized) -> Evaluation:
    """What the manifest of the promoted version stands for."""
    assert result.version is not None
    assert result.evaluation is not None
    manifest.verify(result.version)
    found = manifest.read(result.version)
    assert found is not None
    assert found.gate.passed
    assert (result.version / "report.html").is_file()
    return result.evaluation


def test_magika_names_real_files_as_before(tmp_path):
    found = proven(made("magika", 300, tmp_path))
    assert found.rows == 300
    assert found.agreement.value >= 0.97
    assert found.size < 0.3


def test_recognition_reads_rendered_text_as_before(tmp_path):
    found = proven(made("ocr", 60, tmp_path))
    quality = found.quality
    assert quality.metric == "character-error-rate"
    # The lines are not so easy that nothing is misread, nor so hard that nothing is read.
    assert 0 < quality.baseline.value < 0.2
    assert quality.drop <= 0.01
    assert found.size < 0.3


def test_resnet_50_in_a_quarter_of_the_bytes(tmp_path):
    found = proven(made("resnet50", 8, tmp_path))
    assert found.cosine.value > 0.99
    assert found.size < 0.27
    ranked = {layer.rank: layer for layer in found.layers}
    assert ranked[1].op == "Conv"
    assert len(ranked) > 50


RUINOUS = """
steps:
  - method: int8-static
    operators: [Conv, MatMul, Gemm]
    calibration: percentile
    percentile: 55
    samples: 50
metric: agreement
gate:
  min_agreement: 0.98
"""


def test_recipe_that_ruins_the_model_is_stopped(tmp_path):
    (tmp_path / "bad.yaml").write_text(RUINOUS)
    with pytest.raises(GateError, match="the agreement with the original is 0"):
        made("magika", 100, tmp_path, str(tmp_path / "bad.yaml"))
    assert not list((tmp_path / "models").glob("magika/*"))
    (report,) = tmp_path.rglob("report.json")
    assert json.loads(report.read_text())["verdict"]["passed"] is False
