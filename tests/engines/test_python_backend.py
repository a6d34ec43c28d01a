"""What a model.py has of `triton_python_backend_utils`, and how one is loaded and run."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from python_models import SUM, SUM_CONFIG, put, tensors

from ds_engines.base import EngineOptions
from ds_engines.errors import ConfigError, EngineFailure, LoadError
from ds_engines.python_backend.engine import PythonEngine
from ds_engines.python_backend.loading import MODULES
from ds_engines.spec import ModelSpec
from ds_proto.model_config_pb2 import ModelConfig


@pytest.fixture
def pb_utils(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(MODULES))
    return importlib.import_module("triton_python_backend_utils")


@pytest.fixture(autouse=True)
def own_path() -> Iterator[None]:
    """A worker loads one model in its life; here each test has another one."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("1") or name == "1.model":
            del sys.modules[name]


def load(folder: Path, config: str = "") -> PythonEngine:
    spec = ModelSpec(folder.name, "python", folder / "1" / "model.py")
    said = text_format.Parse(config, ModelConfig())
    return PythonEngine(spec, EngineOptions(), said, folder / "config.pbtxt", folder)


class Said(dict[str, Any]):
    """A request that keeps its answers."""

    id, sequence, start, end, timeout_us = "", 0, False, False, 0
    deadline, partition, cancelled = 1e12, "", False
    outputs: tuple[str, ...] = ()

    def __init__(self, **inputs: np.ndarray) -> None:
        self.inputs = inputs
        self.parameters: dict[str, Any] = {}
        self.answers: list[tuple[Any, Any, bool]] = []

    def respond(self, outputs: Any, error: Any, *, final: bool, parameters: Any = None) -> None:
        self.answers.append((outputs, error, final))


@pytest.mark.parametrize("kind", ["InferenceRequest", "InferenceResponse"])
def test_parameters(pb_utils: ModuleType, kind: str) -> None:
    given = {"a": 1, "b": "c", "d": True}
    one = getattr(pb_utils, kind)(parameters=given)
    given["a"] = 2
    assert json.loads(one.parameters()) == {"a": 1, "b": "c", "d": True}
    assert getattr(pb_utils, kind)().parameters() == "{}"
    for wrong, message in (
        ({"x": 1.5}, "parameter 'x' is a float; it must be bool, int, str"),
        ({"x": [1]}, "parameter 'x' is a list"),
        ({1: "x"}, "a parameter's name is 1; it must be a str"),
        ({"x": 2**63}, "parameter 'x' is 9223372036854775808, which 64 bits do not hold"),
    ):
        with pytest.raises(pb_utils.TritonModelException, match=message):
            getattr(pb_utils, kind)(parameters=wrong)


def test_texts_are_objects(pb_utils: ModuleType) -> None:
    tensor = pb_utils.Tensor("t", np.array([b"a", b"bc\0"], np.object_))
    assert (tensor.name(), tensor.triton_dtype(), tensor.shape()) == ("t", 13, [2])
    packed = pb_utils.serialize_byte_tensor(tensor.as_numpy())
    assert packed == b"\1\0\0\0a\3\0\0\0bc\0"
    assert pb_utils.deserialize_bytes_tensor(packed).tolist() == [b"a", b"bc\0"]
    assert pb_utils.serialize_byte_tensor(np.array([], np.object_)) == ()


@pytest.mark.parametrize("name", ["BOOL", "INT8", "UINT64", "FP16", "FP64", "STRING"])
def test_types_have_three_names(pb_utils: ModuleType, name: str) -> None:
    kind = pb_utils.triton_string_to_numpy(f"TYPE_{name}")
    number = pb_utils.numpy_to_triton_type(kind)
    assert np.dtype(pb_utils.triton_to_numpy_type(number)) == np.dtype(kind)


def test_dlpack_shares_memory(pb_utils: ModuleType) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = pb_utils.Tensor("t", array)
    other = pb_utils.Tensor.from_dlpack("u", tensor)
    array[0, 0] = 9
    assert other.as_numpy()[0, 0] == 9
    again = pb_utils.Tensor.from_dlpack("v", tensor.to_dlpack())
    assert (again.as_numpy() == array).all()


def test_a_type_that_no_datatype_stands_for(pb_utils: ModuleType) -> None:
    with pytest.raises(pb_utils.TritonModelException, match="complex64"):
        pb_utils.Tensor("t", np.zeros(1, np.complex64))


def test_errors_have_codes(pb_utils: ModuleType) -> None:
    error = pb_utils.TritonError("no", pb_utils.TritonError.NOT_FOUND)
    assert (error.message(), error.code()) == ("no", pb_utils.TritonError.NOT_FOUND)
    assert pb_utils.TritonError("no").code() == pb_utils.TritonError.INTERNAL


def test_the_configuration_is_not_contradicted(pb_utils: ModuleType) -> None:
    said = {"name": "m", "max_batch_size": 8, "input": [
        {"name": "X", "data_type": "TYPE_FP32", "dims": [4]}], "output": []}  # fmt: skip
    config = pb_utils.ModelConfig(json.dumps(said))
    config.add_input({"name": "X", "data_type": "TYPE_FP32", "dims": [4]})
    with pytest.raises(ValueError, match="TYPE_FP32"):
        config.add_input({"name": "X", "data_type": "TYPE_INT8", "dims": [4]})
    with pytest.raises(ValueError, match="max_batch_size is 8"):
        config.set_max_batch_size(4)
    with pytest.raises(ValueError, match="has no 'dims'"):
        config.add_output({"name": "Y", "data_type": "TYPE_FP32"})
    assert len(config.as_dict()["input"]) == 1


def test_counters_only_grow(pb_utils: ModuleType) -> None:
    family = pb_utils.MetricFamily("test_of_counters", "A test.", pb_utils.MetricFamily.COUNTER)
    metric = family.Metric(labels={"model": "m"})
    metric.increment(2)
    assert family.Metric(labels={"model": "m"}).value() == 2
    with pytest.raises(pb_utils.TritonModelException, match="never goes down"):
        metric.increment(-1)
    with pytest.raises(pb_utils.TritonModelException, match="not for a counter"):
        metric.set(1)


def test_requests_keep_their_tensors(tmp_path: Path) -> None:
    engine = load(put(tmp_path, "sum", SUM), SUM_CONFIG)
    ones = np.ones(4, np.float32)
    first, second = Said(A=ones.copy(), B=ones), Said(A=3 * ones, B=ones)
    engine.execute([first, second])
    for request, expected in ((first, 2), (second, 4)):
        ((outputs, error, final),) = request.answers
        assert (error, final) == (None, True)
        assert {name: array[0] for name, _, array in outputs} == {"SUM": expected, "TOGETHER": 2}


def test_only_outputs_of_the_configuration_are_sent_on(tmp_path: Path) -> None:
    code = """
    class TritonPythonModel:
        def execute(self, requests):
            wanted = ",".join(requests[0].requested_output_names()).encode()
            outputs = [pb_utils.Tensor(name, np.ones(4, np.float32)) for name in ("SUM", "MORE")]
            outputs.append(pb_utils.Tensor("TOGETHER", np.array([wanted], np.object_)))
            return [pb_utils.InferenceResponse(outputs)]
    """
    engine = load(put(tmp_path, "more", code), SUM_CONFIG)
    for named, expected in (((), ["SUM", "TOGETHER"]), (("TOGETHER",), ["TOGETHER"])):
        request = Said()
        request.outputs = named
        engine.execute([request])
        ((outputs, error, _),) = request.answers
        assert ([name for name, _, _ in outputs], error) == (expected, None)
        assert outputs[-1][2].tolist() == [",".join(expected).encode()]


def test_an_exception_is_told_to_all(tmp_path: Path) -> None:
    code = """
    class TritonPythonModel:
        def execute(self, requests):
            raise KeyError("x")
    """
    engine = load(put(tmp_path, "bad", code), SUM_CONFIG)
    requests = [Said(), Said()]
    engine.execute(requests)
    for request in requests:
        ((_, error, final),) = request.answers
        assert isinstance(error, EngineFailure)
        assert final
        assert str(error).endswith("message: KeyError: 'x'")


def test_helpers_beside_the_model(tmp_path: Path) -> None:
    code = """
    import helper_of_the_test
    from . import helper_of_the_test as same

    class TritonPythonModel:
        def execute(self, requests):
            return [None for _ in requests]
    """
    folder = put(tmp_path, "sum", code)
    (folder / "1" / "helper_of_the_test.py").write_text("VALUE = 1")
    assert load(folder, SUM_CONFIG).spec.inputs[0].name == "A"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('parameters { key: "EXECUTION_ENV_PATH" value { string_value: "x" } }', "EXECUTION_ENV"),
        ('sequence_batching { state { input_name: "A" } }', "keep their state themselves"),
        ('sequence_batching { control_input { name: "S" control { } } }', "START needs one of"),
        ('model_transaction_policy { decoupled: true } response_cache { enable: true }', "cache"),
        ("instance_group { kind: KIND_GPU }", "KIND_GPU"),
        ("dynamic_batching { }", "not batched"),
    ],
)  # fmt: skip
def test_what_is_not_honoured_is_refused(tmp_path: Path, config: str, message: str) -> None:
    folder = put(tmp_path, "sum", SUM)
    with pytest.raises(ConfigError, match=message):
        load(folder, SUM_CONFIG + config)


def test_a_model_needs_tensors(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="the model has no inputs: name them"):
        load(put(tmp_path, "sum", SUM), tensors(outputs="SUM FP32 4"))
