"""`ds-quantize` as a process: from a model and data to a version in a repository."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from quantizing import Workshop, call, workshop

from ds_engines import config_pbtxt, manifest
from ds_engines.base import EngineOptions, load
from ds_engines.errors import LoadError
from ds_engines.spec import ModelSpec


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return workshop(tmp_path)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """With one version promoted."""
    made = workshop(tmp_path_factory.mktemp("first"))
    found = made.run()
    assert found.returncode == 0, found.stdout + found.stderr
    return made


@pytest.fixture
def done(first: Workshop, tmp_path: Path) -> Workshop:
    """A copy of that."""
    shutil.copytree(first.folder, tmp_path, dirs_exist_ok=True)
    return Workshop(tmp_path)


@pytest.mark.slow
def test_a_version_is_written_whole_and_the_next_one_beside_it(done: Workshop) -> None:
    shop = done
    version = shop.models / "net" / "1"
    names = {path.name for path in version.iterdir()}
    assert names == {"model.onnx", "manifest.json", "report.html", "report.json"}
    assert (version / "model.onnx").stat().st_size < (shop.folder / "net.onnx").stat().st_size / 2

    said = manifest.admit(version)
    assert said is not None
    assert said.gate.passed
    assert said.recipe["steps"][1]["method"] == "int8-static"
    assert said.data.evaluation is not None
    assert said.data.evaluation.rows == 200
    assert [step["method"] for step in said.measured["steps"]] == ["fold", "int8-static"]
    assert "onnxruntime" in said.libraries

    again = shop.run()
    assert again.returncode == 0, again.stderr
    for stage in ("fold", "int8-static", "evaluate"):
        assert f"{stage}: unchanged, reused" in again.stdout
    assert sorted(path.name for path in (shop.models / "net").iterdir()) == [
        "1",
        "2",
        "config.pbtxt",
    ]
    assert [path.name for path in shop.models.iterdir()] == ["net"]


@pytest.mark.slow
def test_what_is_promoted_is_what_the_engine_serves(first: Workshop) -> None:
    shop = first
    path = shop.models / "net" / "1" / "model.onnx"
    spec = ModelSpec(name="net", engine="onnxruntime", artifact=path)
    engine = load(spec, EngineOptions())
    config = shop.models / "net" / "config.pbtxt"
    served = config_pbtxt.apply(engine.spec, config_pbtxt.read(config), str(config))
    assert served.batch.max_batch_size > 1
    rows = np.load(shop.folder / "eval.npz")
    answers = engine.run({"x": rows["x"]})["y"].argmax(1)
    engine.close()
    right = float((answers == rows["labels"]).mean())
    said = manifest.read(path.parent)
    assert said is not None
    assert said.measured["evaluation"]["metrics"][0]["candidate"]["value"] == pytest.approx(right)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_from_the_last_finished_stage(shop: Workshop) -> None:
    process = shop.start()
    _until(process.stdout, "int8-static ...")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not shop.models.exists()

    after = shop.run()
    assert after.returncode == 0, after.stderr
    assert "fold: unchanged, reused" in after.stdout
    assert "int8-static ..." in after.stdout
    assert list((shop.folder / "work").glob("*.partial")) == []


@pytest.mark.slow
def test_a_promotion_that_is_killed_leaves_a_whole_version_or_none(shop: Workshop) -> None:
    for _ in range(2):
        process = shop.start()
        _until(process.stdout, "promote ...")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for version in shop.models.glob("net/[0-9]*"):
            assert manifest.admit(version) is not None
    after = shop.run()
    assert after.returncode == 0, after.stderr
    assert "evaluate: unchanged, reused" in after.stdout
    assert [path.name for path in shop.models.iterdir()] == ["net"]
    assert list((shop.models / "net").glob(".*")) == []


def _until(lines: object, wanted: str) -> None:
    seen = []
    for line in lines:  # type: ignore[attr-defined]
        seen.append(line)
        if wanted in line:
            return
    raise AssertionError("".join(seen))


@pytest.mark.slow
def test_a_result_that_fails_its_gate_is_not_promoted_unless_asked_for(done: Workshop) -> None:
    shop = done
    shutil.rmtree(shop.models)
    bad = shop.recipe("extends: ./int8.yaml\ngate: {max_size: 0.01}")
    failed = shop.run(recipe=bad)
    assert failed.returncode == 1
    assert "max_size wants at most 0.010" in failed.stdout
    assert "Nothing was promoted" in failed.stdout
    assert not shop.models.exists()
    report = Path(failed.stdout.split("the report is ")[1].strip())
    assert json.loads(report.with_suffix(".json").read_text())

    kept = shop.run("--keep-failed", recipe=bad)
    assert kept.returncode == 1
    with pytest.raises(LoadError, match="did not pass its gate"):
        manifest.admit(shop.models / "net" / "1")
    looser = shop.run("--limit", "max_size=0.9", recipe=bad)
    assert looser.returncode == 0, looser.stderr
    said = manifest.read(shop.models / "net" / "2")
    assert said is not None
    assert said.gate.limits["max_size"] == 0.9


@pytest.mark.slow
def test_a_run_that_is_interrupted_says_how_to_go_on(shop: Workshop) -> None:
    process = shop.start()
    _until(process.stdout, "int8-static ...")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130
    assert said.endswith("ds-quantize: interrupted; the same command goes on from here\n")
    assert "Traceback" not in said


@pytest.mark.slow
def test_judging_by_the_data_of_the_calibration_is_noted(done: Workshop) -> None:
    found = done.run("--calibration", "eval.npz")
    assert found.returncode == 0, found.stderr
    assert "note: calibration and evaluation data are the same" in found.stdout
    for version, noted in (("1", False), ("2", True)):
        said = manifest.read(done.models / "net" / version)
        assert said is not None
        notes = said.measured["evaluation"]["notes"]
        assert any("data are the same" in note for note in notes) is noted


@pytest.mark.slow
def test_show_verify_and_compare(done: Workshop) -> None:
    shop = done
    shown = shop.command("show", "models/net")
    assert shown.returncode == 0, shown.stderr
    assert "recipe: int8 (fold, int8-static)" in shown.stdout
    assert "gate: passed" in shown.stdout

    verified = shop.command("verify", "models/net")
    assert (verified.returncode, verified.stdout.strip()) == (
        0,
        "models/net/1: whole, and passed its gate",
    )
    compared = shop.command(
        "compare", "net.onnx", "models/net", "--evaluation", "eval.npz", "--seconds", "0.02"
    )
    assert compared.returncode == 0, compared.stderr
    assert "top-1" in compared.stdout

    with (shop.models / "net" / "1" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    verified = shop.command("verify", "models/net/1")
    assert verified.returncode == 1
    assert "models/net/1/model.onnx has" in verified.stdout


@pytest.mark.slow
def test_a_configuration_that_is_there_is_kept_and_must_fit(done: Workshop) -> None:
    shop = done
    config = shop.models / "net" / "config.pbtxt"
    config.write_text('input { name: "z" data_type: TYPE_FP32 dims: 64 }')
    failed = shop.run()
    assert failed.returncode == 1
    assert "does not fit the configuration that is there" in failed.stderr
    assert "config.pbtxt" in failed.stderr
    own = "max_batch_size: 4\ndynamic_batching { max_queue_delay_microseconds: 100 }\n"
    config.write_text(own)
    assert shop.run().returncode == 0
    assert config.read_text() == own
    assert (shop.models / "net" / "2" / "model.onnx").exists()


def test_tensors_beside_the_file_come_along(shop: Workshop) -> None:
    import onnx

    from ds_quantize import stored
    from ds_quantize.forms import OnnxModel
    from ds_quantize.sources import onnx_files

    model = onnx.load(shop.folder / "net.onnx")
    place = shop.folder / "large"
    place.mkdir()
    onnx.save_model(
        model,
        place / "net.onnx",
        save_as_external_data=True,
        location="net.weights",
        size_threshold=0,
    )
    assert [path.name for path in onnx_files(place / "net.onnx")] == ["net.onnx", "net.weights"]
    copy = shop.folder / "copy"
    copy.mkdir()
    path = stored.copy(OnnxModel(place / "net.onnx"), copy, "model.onnx")
    ort.InferenceSession(path).run(None, {"x": np.zeros((1, 64), np.float32)})


WRONG = {
    "no-such.onnx": "there is no no-such.onnx",
    "eval.npz": "eval.npz is a zip archive",
    "int8.yaml": "int8.yaml is not a model that can be read",
    "empty": "holds no config.json and no model.onnx",
}


@pytest.mark.parametrize("model", WRONG)
def test_a_model_that_cannot_be_read_is_told(model: str, shop: Workshop) -> None:
    (shop.folder / "empty").mkdir()
    words = shop.words()
    words[words.index("net.onnx")] = model
    found = shop.command(*words[3:])
    assert found.returncode == 1
    assert WRONG[model] in found.stderr
    assert found.stderr.count("\n") == 1
    assert not shop.models.exists()


@pytest.mark.slow
def test_steps_for_another_kind_of_model_are_told(shop: Workshop) -> None:
    found = shop.run(recipe=shop.recipe("steps: [fold, finetune]"))
    assert found.returncode == 1
    assert "finetune takes a model of form 'torch', and this is 'onnx'" in found.stderr
    (shop.folder / "text").mkdir()
    (shop.folder / "text" / "config.json").write_text("{}")
    words = shop.words()
    words[words.index("net.onnx")] = "text"
    found = shop.command(*words[3:])
    assert "fold takes a model of form 'onnx', and this is 'huggingface'" in found.stderr
    assert not shop.models.exists()


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from ds_quantize.cli import main; "


@pytest.mark.slow
def test_a_library_that_is_not_installed_is_named(shop: Workshop) -> None:
    (shop.folder / "net.py").write_text("def factory(): ...")
    words = shop.words()[3:]
    words[words.index("net.onnx")] = "net.py:factory"
    code = f"{WITHOUT_TORCH}sys.exit(main({words!r}))"
    found = call([sys.executable, "-c", code], shop.folder)
    assert found.returncode == 1
    said = "reading net.py:factory needs 'torch': pip install \"ds-serve[quantize-torch]\""
    assert found.stderr == f"ds-quantize: {said}\n"
