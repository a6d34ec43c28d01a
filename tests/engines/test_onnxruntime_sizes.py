"""Batches that are padded to a few sizes, each of which has a session of its own."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest

from ds_engines import onnxruntime_sizes as sizes
from ds_engines.base import EngineOptions, Tensors
from ds_engines.config_pbtxt import accelerated
from ds_engines.errors import LoadError
from ds_engines.onnxruntime import OnnxRuntimeEngine
from ds_engines.onnxruntime_devices import CPU, CUDA, MIGRAPHX, TENSORRT, Choice
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec
from ds_proto.model_config_pb2 import ModelConfig

PLAIN, SPARING = EngineOptions(), EngineOptions(memory_efficient=True)


def spec_of(
    artifact: Path, most: int, said: str = "", preferred: tuple[int, ...] = ()
) -> ModelSpec:
    policy = BatchPolicy(max_batch_size=most, preferred_sizes=preferred)
    parameters = {sizes.PARAMETER: said} if said else {}
    return ModelSpec("m", "onnxruntime", artifact, batch=policy, parameters=parameters)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.classifier(tmp_path_factory.mktemp("pictures") / "model.onnx")


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.mlp(tmp_path_factory.mktemp("mlp") / "model.onnx")


def test_convolutions_on_cuda_have_sizes_and_other_models_none(pictures: Path, mlp: Path) -> None:
    def chosen(file: Path, provider: str, most: int, options: EngineOptions = PLAIN) -> object:
        return sizes.chosen(spec_of(file, most), Choice(provider), options)

    assert chosen(pictures, CUDA, 32) == (1, 2, 4, 8, 16, 32)
    assert chosen(pictures, CUDA, 20) == (1, 2, 4, 8, 16, 20)
    assert chosen(pictures, CUDA, 1) == chosen(pictures, CUDA, 0) == ()
    assert chosen(mlp, CUDA, 32) == chosen(pictures, CPU, 32) == ()
    assert chosen(pictures, TENSORRT, 32) == ()
    assert chosen(mlp, MIGRAPHX, 5) == (1, 2, 4, 5)
    assert chosen(pictures, CUDA, 32, SPARING) == ()
    assert chosen(mlp, MIGRAPHX, 32, SPARING) == (32,)


def test_sizes_that_the_configuration_prefers_or_names(pictures: Path) -> None:
    cuda = Choice(CUDA)
    assert sizes.chosen(spec_of(pictures, 8, preferred=(6, 12)), cuda, PLAIN) == (1, 2, 4, 6, 8)
    for options in (PLAIN, SPARING):
        assert sizes.chosen(spec_of(pictures, 8, "8, 3"), cuda, options) == (3, 8)
        assert sizes.chosen(spec_of(pictures, 8, "any"), cuda, options) == ()
    for wrong in ("0,4", "4,9", "four", "4;8", ""):
        spec = spec_of(pictures, 8)
        spec.parameters[sizes.PARAMETER] = wrong
        with pytest.raises(LoadError, match=r"onnxruntime.batch_sizes is .*from 1 to .*8, such as"):
            sizes.chosen(spec, cuda, PLAIN)


def test_sizes_are_left_out_until_their_weights_fit() -> None:
    asked = []

    def room_for(most: int) -> tuple[int, ...]:
        def fits(more: int) -> bool:
            asked.append(more)
            return more <= most

        return sizes.affordable((1, 2, 4, 8, 16), fits)

    assert [room_for(most) for most in (9, 3, 1, 0)] == [
        (1, 2, 4, 8, 16), (1, 4, 16), (1, 16), (16,),
    ]  # fmt: skip
    assert max(asked) == 4  # one of the five is there


def test_tensors_are_padded_and_cut_along_their_own_axes() -> None:
    inputs = [TensorSpec("a", "FP32", (-1, 2), 0), TensorSpec("b", "INT64", (2, -1), 1)]
    given = {"a": np.arange(6.0).reshape(3, 2), "b": np.arange(6).reshape(2, 3), "c": np.ones(3)}
    assert sizes.rows_of(given, inputs) == 3
    made = sizes.padded(given, inputs, 3, 5)
    assert made["a"].tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    assert made["b"].tolist() == [[0, 1, 2, 2, 2], [3, 4, 5, 5, 5]]
    assert made["c"] is given["c"]
    back = sizes.cut(made, inputs, 3, 5)
    for name, array in given.items():
        np.testing.assert_array_equal(back[name], array)
    assert sizes.rows_of({"a": given["a"], "b": np.ones((2, 4))}, inputs) == 0
    assert [sizes.next_of((2, 8), rows) for rows in (0, 1, 2, 3, 8, 9)] == [0, 2, 2, 8, 8, 9]


def test_answers_are_those_of_one_session_whatever_the_rows(
    pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ds_engines"):
        ours = OnnxRuntimeEngine(spec_of(pictures, 8, "1,3,6"), PLAIN)
    assert "batches are padded to 1, 3, 6 rows" in caplog.text
    theirs = OnnxRuntimeEngine(spec_of(pictures, 8), PLAIN)
    assert (ours.batch_sizes, theirs.batch_sizes) == ((1, 3, 6), ())
    assert (ours.spec.inputs, ours.spec.outputs) == (theirs.spec.inputs, theirs.spec.outputs)
    given = np.random.default_rng(0).random((8, 3, 224, 224), np.float32)
    wanted = theirs.run({"image": given})["scores"]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda n: ours.run({"image": given[:n]}), [1, 2, 3, 4, 6, 7, 8]))
    for answer, rows in zip(found, [1, 2, 3, 4, 6, 7, 8], strict=True):
        np.testing.assert_allclose(answer["scores"], wanted[:rows], rtol=1e-4, atol=1e-5)
    ours.close()
    theirs.close()


def test_each_size_is_run_by_its_own_session(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OnnxRuntimeEngine(spec_of(pictures, 4, "1,2,4"), PLAIN)
    seen: list[tuple[int, int]] = []
    computed: Any = engine.computed

    def watched(session: object, batch: Tensors, *rest: object, **more: object) -> Tensors:
        seen.append((id(session), len(batch["image"])))
        answers: Tensors = computed(session, batch, *rest, **more)
        return answers

    monkeypatch.setattr(engine, "computed", watched)
    for rows in (1, 4, 3, 2, 1, 4):
        engine.run({"image": np.zeros((rows, 3, 224, 224), np.float32)})
    assert [rows for _, rows in seen] == [1, 4, 4, 2, 1, 4]
    assert len({session for session, _ in seen}) == len(set(seen)) == 3
    engine.close()


def test_rows_that_do_not_join_are_not_padded(tmp_path: Path) -> None:
    file = onnx_models.running_total(tmp_path / "total.onnx")
    engine = OnnxRuntimeEngine(spec_of(file, 4, "4"), PLAIN)
    assert (engine.spec.batch.max_batch_size, engine.batch_sizes) == (0, ())
    engine.close()


def test_the_configuration_reaches_the_engine(pictures: Path) -> None:
    config = ModelConfig(max_batch_size=6)
    config.dynamic_batching.preferred_batch_size.append(5)
    config.parameters[sizes.PARAMETER].string_value = "2,6"
    config.parameters["batch_axis.image"].string_value = "0"
    spec = accelerated(spec_of(pictures, 32), config)
    assert (spec.batch.max_batch_size, spec.batch.preferred_sizes) == (6, (5,))
    assert spec.parameters == {sizes.PARAMETER: "2,6"}
    assert sizes.chosen(spec, Choice(CUDA), PLAIN) == (2, 6)
    assert accelerated(spec_of(pictures, 32), ModelConfig()).batch.max_batch_size == 32
