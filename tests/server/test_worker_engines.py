"""What a worker does where the engine that was chosen for a model does not take it."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import onnx_models
import pytest

from ds_engines import config_pbtxt
from ds_engines.base import EngineOptions
from ds_engines.errors import ServeError
from ds_engines.spec import BatchPolicy, ModelSpec
from ds_serve.logs import LogSettings
from ds_serve.worker.__main__ import load
from ds_serve.worker.config import WorkerConfig


def config(tmp_path: Path, **more: str) -> WorkerConfig:
    """For a GPU that no machine has."""
    return WorkerConfig(
        identity="w",
        control=tmp_path / "control",
        parent_pid=1,
        logs=LogSettings(),
        spec=ModelSpec(
            "mlp",
            "tensorrt",
            onnx_models.mlp(tmp_path / "mlp.onnx"),
            batch=BatchPolicy(max_batch_size=8),
        ),
        options=EngineOptions(device="cuda:4096"),
        socket=tmp_path / "socket",
        **more,
    )


def test_another_engine_takes_the_model_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        engine = load(config(tmp_path, fallback="onnxruntime"))
    assert (engine.spec.engine, engine.spec.batch.max_batch_size) == ("onnxruntime", 8)
    assert "model mlp: onnxruntime runs it, for tensorrt does not: " in caplog.text


def test_an_engine_that_was_asked_for_by_name_has_no_other_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"cuda-bindings|--device cuda:4096|not installed"):
        load(config(tmp_path))


def test_an_engine_that_builds_is_told_what_the_configuration_asks_of_it(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text(
        "max_batch_size: 32\ninstance_group [{ count: 2 }]\n"
        "dynamic_batching { preferred_batch_size: [4, 8] }\n"
        'parameters { key: "tensorrt.level" value { string_value: "1" } }\n'
    )
    before = config(tmp_path).spec
    said = config_pbtxt.read(path)
    found = config_pbtxt.foretold(before, said, str(path))
    assert found == msgspec.structs.replace(
        before,
        slots=2,
        parameters={"tensorrt.level": "1"},
        batch=BatchPolicy(max_batch_size=32, preferred_sizes=(4, 8)),
    )
