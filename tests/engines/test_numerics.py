"""Which layer is the first that yields NaN or infinity, by the engines that show their layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import onnx
import onnx_models
import pytest
import tritonclient.http
from onnx import TensorProto, helper, numpy_helper
from serving import Server

from ds_engines.base import BatchEngine, EngineOptions, load
from ds_engines.errors import EngineFailure, LoadError, Unsupported
from ds_engines.numerics import counted
from ds_engines.spec import BatchPolicy, ModelSpec, WarmUp, WarmUpInput
from ds_serve.worker.warming import warm

ENGINES = ("onnxruntime", "openvino")
MASK = np.where(np.tri(3, dtype=bool), 0, -np.inf).astype(np.float32)


def masked(path: Path) -> Path:
    """x FP32[n, 3, 3] to y: its softmax under a mask of minus infinity, times `x` once more."""
    return onnx_models.save(
        path,
        [
            helper.make_node("Add", ["x", "mask"], ["scores"], "mask"),
            helper.make_node("Softmax", ["scores"], ["shares"], "softmax", axis=-1),
            helper.make_node("Mul", ["shares", "x"], ["y"], "apply"),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 3])],
        [numpy_helper.from_array(MASK, "mask")],
    )


Make = Callable[[Path], Path]


def watched(make: Make, engine: str, folder: Path) -> BatchEngine:
    spec = ModelSpec("m", engine, make(folder / "m.onnx"), batch=BatchPolicy(max_batch_size=8))
    return load(spec, EngineOptions(debug_numerics=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_layer_is_named_with_its_operator_output_and_count(
    tmp_path: Path, engine: str
) -> None:
    model = watched(onnx_models.logarithms, engine, tmp_path)
    assert model.spec.batch.max_batch_size == 8
    x = np.array([[1, 2, 3]], np.float32)
    np.testing.assert_allclose(model.run({"x": x})["y"], 1 / (np.log(2 * x) + 4), rtol=1e-5)
    said = r"layer 'block/log' \(Log\) is the first .*: 2 infinite of 6 numbers in its output '"
    with pytest.raises(EngineFailure, match=said):
        model.run({"x": np.array([[1, 0, 3], [4, 0, 6]], np.float32)})
    with pytest.raises(EngineFailure, match=r"'block/log' \(Log\).*: 1 NaN and 1 infinite of 3"):
        model.run({"x": np.array([[0, -1, 1]], np.float32)})
    assert np.isfinite(model.run({"x": x})["y"]).all()
    model.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mask_of_infinity_is_no_fault_and_what_it_makes_of_a_row_is(
    tmp_path: Path, engine: str
) -> None:
    model = watched(masked, engine, tmp_path)
    x = np.ones((2, 3, 3), np.float32)
    assert np.isfinite(model.run({"x": x})["y"]).all()
    x[1, 0, 0] = np.inf  # less infinity
    with pytest.raises(EngineFailure, match=r"'softmax' \(Softmax\).* NaN .*of 18 numbers"):
        model.run({"x": x})


def test_what_a_client_sends_is_not_the_models_fault(tmp_path: Path) -> None:
    model = watched(onnx_models.logarithms, "onnxruntime", tmp_path)
    answer = model.run({"x": np.full((1, 3), np.nan, np.float32)})["y"]
    assert np.isnan(answer).all()


def test_weights_beside_the_file_and_constants_of_16_bits_are_looked_into(tmp_path: Path) -> None:
    path = masked(tmp_path / "m.onnx")
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0
    )
    spec = ModelSpec("m", "onnxruntime", path, batch=BatchPolicy(max_batch_size=8))
    model = load(spec, EngineOptions(debug_numerics=True))
    assert np.isfinite(model.run({"x": np.ones((1, 3, 3), np.float32)})["y"]).all()
    bits = np.array([1, np.inf, -np.inf, np.nan], ml_dtypes.bfloat16).view(np.uint16)
    assert counted(bits, brain=True) == (1, 2, 4)


def test_text_and_bf16_pass(tmp_path: Path) -> None:
    path = onnx_models.identities(tmp_path / "m.onnx", ["BYTES", "FP32"])
    model = load(ModelSpec("m", "onnxruntime", path), EngineOptions(debug_numerics=True))
    batch = {"in_BYTES": np.array([[b"a"]], object), "in_FP32": np.ones((1, 1), np.float32)}
    assert model.run(batch)["out_BYTES"].tolist() == [["a"]]
    path = onnx_models.identities(tmp_path / "b.onnx", ["BF16"])
    model = load(ModelSpec("m", "onnxruntime", path), EngineOptions(debug_numerics=True))
    assert model.run({"in_BF16": np.array([[0x3F80]], np.uint16)})["out_BF16"] == 0x3F80


def test_engines_that_show_no_layers_refuse() -> None:
    with pytest.raises(
        Unsupported, match=r"--debug-numerics: python does not show its layers.*onnxruntime"
    ):
        load(ModelSpec("m", "python", Path("model.py")), EngineOptions(debug_numerics=True))


def test_a_warm_up_that_yields_infinity_keeps_the_model_back(tmp_path: Path) -> None:
    model = watched(onnx_models.logarithms, "onnxruntime", tmp_path)
    zeros = WarmUp("zeros", 1, 1, (WarmUpInput("x", "FP32", (3,)),))
    model.spec = msgspec.structs.replace(model.spec, warm_ups=(zeros,))
    with pytest.raises(LoadError, match=r"warm-up 'zeros' failed: .*'block/log' \(Log\)"):
        warm(model)


def test_through_the_server_the_bad_request_alone_fails(tmp_path: Path) -> None:
    path = onnx_models.logarithms(tmp_path / "net.onnx")
    with (
        Server("--model", path, "--debug-numerics") as server,
        tritonclient.http.InferenceServerClient(server.http_address) as client,
    ):
        for value, ok in ((1, True), (0, False), (2, True)):
            given = tritonclient.http.InferInput("x", [1, 3], "FP32")
            given.set_data_from_numpy(np.full((1, 3), value, np.float32))
            if ok:
                assert np.isfinite(client.infer("net", [given]).as_numpy("y")).all()
                continue
            with pytest.raises(tritonclient.http.InferenceServerException) as refused:
                client.infer("net", [given])
            assert re.search(r"layer 'block/log' \(Log\).*3 infinite of 3", str(refused.value))
