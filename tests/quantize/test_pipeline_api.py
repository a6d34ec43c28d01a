"""The pipeline from Python."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from quantizing import Workshop, workshop

import ds_quantize
from ds_engines import manifest
from ds_quantize.errors import DataError, GateError, QuantizeError, SourceError
from ds_quantize.evaluate import Options


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return workshop(tmp_path_factory.mktemp("api"))


@pytest.fixture
def settings(shop: Workshop) -> ds_quantize.Settings:
    options = Options(seconds=0.02, memory=False)
    return ds_quantize.Settings(work=shop.folder / "work", threads=1, options=options)


def arrays(shop: Workshop, name: str) -> dict[str, np.ndarray]:
    with np.load(shop.folder / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def test_one_line_without_data(shop: Workshop, tmp_path: Path) -> None:
    """The file's name says nothing: what is in it does."""
    original = tmp_path / "model.pt"
    original.write_bytes((shop.folder / "net.onnx").read_bytes())
    quantized = ds_quantize.quantize_dynamic(original)
    saved = quantized.save(tmp_path / "out" / "quantized_model.pt")
    assert saved.stat().st_size < original.stat().st_size / 2
    rows = arrays(shop, "eval")
    answers = ort.InferenceSession(saved).run(None, {"x": rows["x"]})[0].argmax(1)
    assert (answers == rows["labels"]).mean() > 0.9
    scratch = quantized.path
    assert scratch.exists()
    del quantized
    gc.collect()
    assert not scratch.exists()


@pytest.mark.slow
def test_arrays_calibrate_and_judge(
    shop: Workshop, settings: ds_quantize.Settings, tmp_path: Path
) -> None:
    made = ds_quantize.quantize(
        shop.folder / "net.onnx",
        shop.folder / "int8.yaml",
        arrays(shop, "cal"),
        evaluation=arrays(shop, "eval"),
        output=tmp_path / "models" / "net",
        settings=settings,
    )
    assert made.verdict is not None
    assert made.verdict.passed
    assert made.evaluation is not None
    assert made.evaluation.size < 0.5
    assert made.version == tmp_path / "models" / "net" / "1"
    assert manifest.admit(made.version) is not None


@pytest.mark.slow
def test_what_is_not_good_enough_is_not_promoted(
    shop: Workshop, settings: ds_quantize.Settings, tmp_path: Path
) -> None:
    shop.recipe("extends: ./int8.yaml\ngate: {max_size: 0.01}", "tiny")
    output = tmp_path / "models" / "net"
    with pytest.raises(GateError, match=r"tiny is not good enough: .*; see .*report\.html"):
        ds_quantize.quantize(
            shop.folder / "net.onnx",
            shop.folder / "tiny.yaml",
            arrays(shop, "cal"),
            evaluation=arrays(shop, "eval"),
            output=output,
            settings=settings,
        )
    assert not output.parent.exists()


def test_what_is_missing_is_told_first(
    shop: Workshop, settings: ds_quantize.Settings, tmp_path: Path
) -> None:
    model, plan = shop.folder / "net.onnx", shop.folder / "int8.yaml"
    with pytest.raises(DataError, match="int8-static needs calibration data"):
        ds_quantize.quantize(model, plan, settings=settings)
    with pytest.raises(DataError, match="takes only models that are proven"):
        ds_quantize.quantize(model, plan, arrays(shop, "cal"), output=tmp_path / "m")
    with pytest.raises(SourceError, match="there is no"):
        ds_quantize.quantize(tmp_path / "none.onnx", plan, arrays(shop, "cal"), settings=settings)
    with pytest.raises(QuantizeError, match=r"looks like a version"):
        ds_quantize.quantize(
            model, plan, evaluation=arrays(shop, "eval"), output=tmp_path / "net" / "1"
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[:, :3], r"shape \[3\] a row; net\.onnx wants \[64\]"),
        (lambda x: np.where(np.arange(64) == 5, np.nan, x), "data must be finite"),
    ],
)
def test_data_that_do_not_fit_are_told_before_anything_is_done(
    change: object, said: str, shop: Workshop, settings: ds_quantize.Settings
) -> None:
    rows = arrays(shop, "cal")
    rows["x"] = change(rows["x"]).astype(np.float32)  # type: ignore[operator]
    with pytest.raises(DataError, match=said):
        ds_quantize.quantize(
            shop.folder / "net.onnx", shop.folder / "int8.yaml", rows, settings=settings
        )
