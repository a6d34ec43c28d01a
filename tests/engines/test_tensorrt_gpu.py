"""The engine on a GPU: what it answers, what it holds, and what it says when memory is short."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="needs cuda-bindings and a GPU")

from ds_engines.cuda import device

if not device.count():
    pytest.skip(f"needs a GPU: {device.why_none()}", allow_module_level=True)

import onnx_models

from ds_engines import layers, tensorrt_store
from ds_engines.base import EngineOptions, load
from ds_engines.cuda.calls import CudaError, call
from ds_engines.cuda.memory import Buffer, DeviceMemory
from ds_engines.cuda.stream import Event, Stream
from ds_engines.errors import EngineFailure, InvalidRequest, LoadError, OutOfMemory
from ds_engines.spec import BatchPolicy, ModelSpec

GPU = EngineOptions(device="cuda:0")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))


def spec_of(path: Path, engine: str = "tensorrt") -> ModelSpec:
    return ModelSpec("mlp", engine, path, batch=BatchPolicy(max_batch_size=16))


def test_memory_goes_to_the_device_and_back() -> None:
    here = device.find("cuda:0")
    here.use()
    stream, first, last = Stream(), Event(), Event()
    buffer = Buffer(12 << 20, unified=here.unified)
    data = np.random.default_rng(0).integers(0, 255, 12 << 20, np.uint8)
    first.record(stream)
    buffer.put(data, stream)
    stream.wait()
    buffer.data[:] = 0 if not here.unified else buffer.data
    buffer.fetch(data.nbytes, stream)
    last.record(stream)
    last.wait()
    assert np.array_equal(buffer.array(data.shape, data.dtype), data)
    assert last.since(first) > 0
    for held in (buffer, first, last, stream):
        held.free()


def test_what_fails_names_the_call_and_the_error() -> None:
    from cuda.bindings import runtime

    with pytest.raises(OutOfMemory, match="cudaMalloc failed: cudaErrorMemoryAllocation"):
        DeviceMemory(1 << 50)
    with pytest.raises(CudaError, match="cudaSetDevice failed: cudaErrorInvalidDevice") as caught:
        call(runtime.cudaSetDevice, 4096)
    assert caught.value.code == "cudaErrorInvalidDevice"


def test_answers_are_onnx_runtimes_whatever_the_batch_and_however_often(tmp_path: Path) -> None:
    path = onnx_models.mlp(tmp_path / "mlp.onnx")
    ours, theirs = load(spec_of(path), GPU), load(spec_of(path, "onnxruntime"), EngineOptions())
    assert ours.spec.inputs == theirs.spec.inputs
    assert ours.spec.outputs == theirs.spec.outputs
    assert ours.spec.batch.max_batch_size == 16
    (given,) = ours.spec.inputs
    rng = np.random.default_rng(0)
    failures: list[BaseException] = []

    def ask(sizes: tuple[int, ...]) -> None:
        try:
            for size in sizes:
                shape = tuple(size if axis == -1 else axis for axis in given.shape)
                batch = {given.name: rng.random(shape).astype(np.float32)}
                wanted, found = theirs.run(batch), ours.run(batch)
                for name, array in wanted.items():
                    np.testing.assert_allclose(found[name], array, rtol=1e-2, atol=1e-3)
        except BaseException as error:
            failures.append(error)

    # Eight times each: graphs are recorded after four.
    threads = [threading.Thread(target=ask, args=((1, 3, 16) * 8,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with pytest.raises(InvalidRequest, match="the plan was built for"):
        ours.run({given.name: np.zeros((17, *given.shape[1:]), np.float32)})
    ours.close()


def test_nothing_stays_behind(tmp_path: Path) -> None:
    path = onnx_models.mlp(tmp_path / "mlp.onnx")
    load(spec_of(path), GPU).close()  # what the libraries keep for themselves
    before = device.find("cuda:0").free()
    for _ in range(10):
        load(spec_of(path), GPU).close()
    assert before - device.find("cuda:0").free() < 32 << 20


def test_a_plan_of_another_gpu_is_built_anew_from_the_file_beside_it(tmp_path: Path) -> None:
    path = onnx_models.mlp(tmp_path / "mlp.onnx")
    plan = tmp_path / "mlp.plan"
    plan.write_bytes(b"ptrt" + bytes(100))
    load(spec_of(plan), GPU).close()
    path.unlink()
    with pytest.raises(LoadError, match=r"mlp\.plan is a plan that cannot run here: .*ONNX file"):
        load(spec_of(plan), GPU)


def test_layers_take_time(tmp_path: Path) -> None:
    spec = spec_of(onnx_models.mlp(tmp_path / "mlp.onnx"))
    engine = load(spec, GPU)
    (given,) = engine.spec.inputs
    batch = {given.name: np.zeros((4, *given.shape[1:]), np.float32)}
    engine.close()
    found = layers.profile(spec, GPU, batch, 0.5)
    assert found.engine == "tensorrt"
    assert sum(layer.us for layer in found.layers) > 0
    assert tensorrt_store.home().is_dir()


def test_the_first_layer_that_yields_infinity_is_named(tmp_path: Path) -> None:
    path = onnx_models.logarithms(tmp_path / "log.onnx")
    engine = load(spec_of(path), EngineOptions(device="cuda:0", debug_numerics=True))
    rows = np.array([[1, 2, 3]], np.float32)
    np.testing.assert_allclose(engine.run({"x": rows})["y"], 1 / (np.log(2 * rows) + 4), rtol=1e-3)
    with pytest.raises(
        EngineFailure, match=r"layer 'block/log' \(Log\) is the first .*: 1 infinite"
    ):
        engine.run({"x": np.array([[1, 0, 3]], np.float32)})
    engine.close()
