"""Which of ONNX Runtime's providers runs a model, and how batches go to a device and back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import numpy as np
import onnx_models
import onnxruntime
import pytest

from ds_engines.base import EngineOptions, load
from ds_engines.config_pbtxt import ACCELERATOR
from ds_engines.cuda.foreign import DeviceArray, Foreign
from ds_engines.errors import EngineFailure, LoadError, OutOfMemory, Unsupported
from ds_engines.onnxruntime import OnnxRuntimeEngine
from ds_engines.onnxruntime_binding import Bound
from ds_engines.onnxruntime_devices import (
    CPU,
    CUDA,
    MIGRAPHX,
    OPENVINO,
    TENSORRT,
    Choice,
    choose,
    providers,
    refuse_dtype,
)
from ds_engines.onnxruntime_session import placed, settings
from ds_engines.spec import ModelSpec

NVIDIA = (TENSORRT, CUDA, CPU)


@pytest.mark.parametrize(
    ("device", "available", "accelerator", "chosen"),
    [
        ("auto", (CPU,), "", Choice(CPU)),
        ("auto", NVIDIA, "", Choice(CUDA)),
        ("auto", (MIGRAPHX, CPU), "", Choice(MIGRAPHX)),
        ("auto", (OPENVINO, CPU), "", Choice(OPENVINO)),
        ("cpu", NVIDIA, "", Choice(CPU)),
        ("cuda", NVIDIA, "", Choice(CUDA, 0, sure=True)),
        ("cuda:3", NVIDIA, "", Choice(CUDA, 3, sure=True)),
        ("rocm:1", (MIGRAPHX, CPU), "", Choice(MIGRAPHX, 1, sure=True)),
        ("auto", NVIDIA, "tensorrt", Choice(TENSORRT)),
        ("cuda:1", NVIDIA, "tensorrt", Choice(TENSORRT, 1, sure=True)),
        ("cpu", NVIDIA, "tensorrt", Choice(CPU)),
        ("auto", (CPU,), "tensorrt", Choice(CPU)),
        ("auto", NVIDIA, "a_hint_of_tritons", Choice(CUDA)),
        ("cpu", (OPENVINO, CPU), "openvino", Choice(OPENVINO)),
    ],
)
def test_the_device_chooses(
    device: str, available: tuple[str, ...], accelerator: str, chosen: Choice
) -> None:
    assert choose(device, available, accelerator) == chosen


@pytest.mark.parametrize(
    ("device", "accelerator", "says"),
    [
        ("cuda", "", "--device cuda: .* no CUDA: .*pip install onnxruntime-gpu"),
        ("rocm", "", "--device rocm: .* no MIGraphX: .*pip install onnxruntime-migraphx"),
        ("cpu", "openvino", "'openvino': .* no OpenVINO: .*pip install onnxruntime-openvino"),
        ("tpu", "", "--device tpu: .*runs on cpu, cuda and rocm"),
        ("cuda:0,1", "", "one GPU by its number"),
    ],
)
def test_what_is_not_installed_is_refused_with_the_package(
    device: str, accelerator: str, says: str
) -> None:
    with pytest.raises(Unsupported, match=says):
        choose(device, (CPU,), accelerator)


@pytest.mark.parametrize(
    ("provider", "dtype", "machine", "fits"),
    [
        (CPU, "fp32", "x86_64", True), (CPU, "fp16", "aarch64", False),
        (CPU, "bf16", "x86_64", False), (CPU, "bf16", "aarch64", True),
        (CUDA, "fp16", "x86_64", True), (CUDA, "bf16", "x86_64", False),
        (MIGRAPHX, "bf16", "x86_64", True), (TENSORRT, "bf16", "x86_64", True),
        (OPENVINO, "fp16", "x86_64", False), (OPENVINO, "fp32", "x86_64", True),
    ],
)  # fmt: skip
def test_numbers_that_a_provider_does_not_compute_in_are_refused(
    provider: str, dtype: str, machine: str, fits: bool
) -> None:
    if fits:
        refuse_dtype(Choice(provider), dtype, machine)
        return
    with pytest.raises(Unsupported, match=f"--dtype {dtype}: ONNX Runtime with"):
        refuse_dtype(Choice(provider), dtype, machine)


def test_what_providers_are_told() -> None:
    whole = EngineOptions(dtype="fp32", memory_efficient=True)
    ((name, said), last) = providers(Choice(CUDA, 2), whole)
    assert (name, last) == (CUDA, (CPU, {}))
    assert (said["device_id"], said["use_tf32"]) == ("2", "0")
    assert said["arena_extend_strategy"] == "kSameAsRequested"
    half = EngineOptions(dtype="fp16")
    told = providers(Choice(TENSORRT), half, Path("/cache"))
    assert [each for each, _ in told] == [TENSORRT, CUDA, CPU]
    assert told[0][1]["trt_fp16_enable"] == "True"
    assert told[0][1]["trt_engine_cache_path"] == "/cache"
    assert providers(Choice(MIGRAPHX), half)[0][1]["migraphx_fp16_enable"] == "1"
    assert providers(Choice(OPENVINO), EngineOptions(threads=2))[0][1]["num_of_threads"] == "2"


def test_the_choice_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = ModelSpec("m", "onnxruntime", onnx_models.mlp(tmp_path / "m.onnx"))
    with caplog.at_level(logging.INFO, logger="ds_engines"):
        assert not load(spec, EngineOptions(device="auto")).spec.accelerated
    (said,) = caplog.messages
    assert said.endswith("with its own code on the CPU")


def test_a_gpus_hint_is_none_here_and_a_cpus_is_refused(tmp_path: Path) -> None:
    spec = ModelSpec("m", "onnxruntime", onnx_models.mlp(tmp_path / "m.onnx"))
    spec.parameters[ACCELERATOR] = "tensorrt"
    load(spec, EngineOptions()).close()
    spec.parameters[ACCELERATOR] = "openvino"
    with pytest.raises(Unsupported, match="pip install onnxruntime-openvino"):
        load(spec, EngineOptions())


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_left_for_the_cpu_unless_it_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, options = onnx_models.mlp(tmp_path / "m.onnx"), EngineOptions()
    _, choice = placed(path, options, Choice(CUDA), settings(options))
    assert choice == Choice(CPU)
    assert "m.onnx does not run with CUDA on cuda:0" in caplog.text
    with pytest.raises(LoadError, match=r"cannot run with CUDA on cuda:1"):
        placed(path, options, Choice(CUDA, 1, sure=True), settings(options))


def test_batches_are_bound_to_a_device_and_fetched_from_it(tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(onnx_models.sequences(tmp_path / "s.onnx"))
    bound = Bound(session, "cpu")
    for length in (2, 5):
        x = np.random.default_rng(length).random((3, length, 2), np.float32)
        found = bound.run({"x": x}, ("total", "double"))
        np.testing.assert_array_equal(found["double"], x + x)
        np.testing.assert_allclose(found["total"], x.sum((1, 2), keepdims=True), rtol=1e-5)
    assert list(bound.run({"x": x}, ("double",))) == ["double"]
    lent = cast("np.ndarray", DeviceArray(cast(Foreign, Ones()), 0, (1, 2, 2), np.float32))
    assert bound.run({"x": lent}, ("double",))["double"].tolist() == [[[2, 2], [2, 2]]]
    bound.close()


class Ones:
    """Memory of a GPU that holds nothing else."""

    address = number = 0

    def fetch(self, address: int, into: np.ndarray) -> None:
        into[...] = 1


def test_numpys_operators_take_what_a_client_has_on_a_gpu() -> None:
    lent = cast("np.ndarray", DeviceArray(cast(Foreign, Ones()), 0, (2, 3), np.float32))
    assert (lent @ np.full((3, 1), 2) + 1).tolist() == [[7], [7]]
    assert (1 - lent / 2).sum() == 3


def test_what_a_client_has_on_a_gpu_is_fetched_where_the_model_runs_on_the_cpu(
    tmp_path: Path,
) -> None:
    spec = ModelSpec("m", "onnxruntime", onnx_models.mlp(tmp_path / "m.onnx"))
    lent = cast("np.ndarray", DeviceArray(cast(Foreign, Ones()), 0, (3, 64), np.float32))
    for watched in (False, True):
        model = load(spec, EngineOptions(debug_numerics=watched))
        wanted = model.run({"x": np.ones((3, 64), np.float32)})["y"]
        np.testing.assert_array_equal(model.run({"x": lent})["y"], wanted)
        model.close()


@pytest.mark.parametrize(
    ("said", "kind", "fatal"),
    [
        ("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc", OutOfMemory, False),
        ("Failed to allocate memory for requested buffer of size 9", OutOfMemory, False),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", OutOfMemory, False),
        ("CUDA failure 700: an illegal memory access was encountered", EngineFailure, True),
        ("CUDA failure 98: invalid device function ; GPU=0", EngineFailure, False),
        ("HIP failure 719: unspecified launch failure", EngineFailure, True),
    ],
)
def test_which_failures_are_of_memory_and_which_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type, fatal: bool
) -> None:
    spec = ModelSpec("m", "onnxruntime", onnx_models.mlp(tmp_path / "m.onnx"))
    model = OnnxRuntimeEngine(spec, EngineOptions())

    def run(*_: object, **__: object) -> None:
        raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : Non-zero status code: {said}\nmore")

    monkeypatch.setattr(model, "computed", run)
    with pytest.raises(EngineFailure) as caught:
        model.run({"x": np.ones((3, 64), np.float32)})
    assert (type(caught.value), caught.value.fatal) == (kind, fatal)
