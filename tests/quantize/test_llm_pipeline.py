"""From a Hugging Face folder to a version in a repository."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_language_model

from ds_engines import manifest
from ds_quantize.cli import main

LOOSE = ["max_perplexity_increase=0.5", "max_accuracy_drop=0.5"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_model.made(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def here(model: Path, tmp_path: Path) -> Path:
    shutil.copytree(model, tmp_path / "tiny")
    for name, seed in (("t.txt", 1), ("e.txt", 2)):
        (tmp_path / name).write_text("\n".join(tiny_language_model.lines(12, seed)))
    return tmp_path


def run(here: Path, recipe: str, *more: str) -> int:
    return main(
        [str(here / "tiny"), "--recipe", recipe, "--calibration", str(here / "t.txt"),
         "--evaluation", str(here / "e.txt"), "-o", str(here / "models/x"),
         "--work", str(here / "work"), "--threads", "2", *more]
    )  # fmt: skip


@pytest.mark.slow
def test_a_folder_becomes_a_version_with_its_manifest(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = [word for limit in LOOSE for word in ("--limit", limit)]
    assert run(here, "llm-int4-rtn", *limits) == 0
    version = here / "models/x/1"
    assert (here / "models/x/config.pbtxt").read_text() == 'name: "x"\n'
    assert not (version / "stage.json").exists()
    config = json.loads((version / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
    manifest.verify(version)
    said = manifest.read(version)
    assert said is not None
    assert said.gate.passed
    assert "transformers" in said.libraries
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(said.files)
    found = said.measured["evaluation"]
    assert [quality["metric"] for quality in found["metrics"]] == ["next-word", "perplexity"]
    assert any("run by transformers" in note for note in found["notes"])
    assert found["candidate"]["size_bytes"] < 0.6 * found["baseline"]["size_bytes"]
    assert "perplexity" in (version / "report.html").read_text()
    capsys.readouterr()
    assert run(here, "llm-int4-rtn", *limits) == 0  # the second version is of kept stages
    assert "llm-int4: unchanged, reused" in capsys.readouterr().out
    assert main(["verify", str(here / "models/x")]) == 0


@pytest.mark.slow
def test_a_perplexity_that_rises_too_much_is_not_promoted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(here, "llm-int4-rtn", "--limit", "max_perplexity_increase=0") == 1
    assert not (here / "models").exists()
    assert "the increase of the perplexity is" in capsys.readouterr().out


def test_a_recipe_for_other_models_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(here, "int8") == 1
    assert "takes a model of form 'onnx'" in capsys.readouterr().err
