"""ONNX Runtime and PyTorch on a GPU: they answer as they do on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_models
import pytest

from ds_engines.base import BatchEngine, EngineOptions, load
from ds_engines.errors import OutOfMemory
from ds_engines.onnxruntime import OnnxRuntimeEngine
from ds_engines.spec import BatchPolicy, ModelSpec

WIDE, ROWS = 1 << 28, 256
"""Numbers that a row becomes, which take a GiB, and rows for which no GPU of today has memory."""


def onnx_runtime(folder: Path) -> Path:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("needs onnxruntime-gpu and an NVIDIA GPU")
    return onnx_models.mlp(folder / "mlp.onnx")


def torch_program(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a PyTorch for GPUs, and a GPU")
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 8))
    rows = torch.export.Dim("rows", min=1, max=32)
    made = torch.export.export(net, (torch.ones(2, 64),), dynamic_shapes=({0: rows},))
    torch.export.save(made, folder / "mlp.pt2")
    return folder / "mlp.pt2"


MAKERS = {"onnxruntime": onnx_runtime, "torch": torch_program}


def both(engine: str, folder: Path, dtype: str = "auto") -> tuple[BatchEngine, BatchEngine]:
    """On the GPU, and on the CPU."""
    spec = ModelSpec("m", engine, MAKERS[engine](folder), batch=BatchPolicy(max_batch_size=16))
    return load(spec, EngineOptions(device="cuda", dtype=dtype)), load(spec, EngineOptions())


@pytest.mark.parametrize("engine", MAKERS)
def test_answers_are_the_cpus_whatever_the_batch_and_however_often(
    tmp_path: Path, engine: str
) -> None:
    ours, theirs = both(engine, tmp_path)
    assert ours.spec.accelerated
    assert (ours.spec.inputs, ours.spec.outputs) == (theirs.spec.inputs, theirs.spec.outputs)
    assert ours.spec.slots == 3
    name, rng = ours.spec.inputs[0].name, np.random.default_rng(0)
    batches = [rng.random((size, 64), np.float32) for size in (1, 3, 16)]
    wanted = [theirs.run({name: batch}) for batch in batches]
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(8):  # graphs are recorded after four
                for batch, answer in zip(batches, wanted, strict=True):
                    for output, array in ours.run({name: batch}).items():
                        np.testing.assert_allclose(array, answer[output], rtol=1e-2, atol=1e-3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    ours.close()


@pytest.mark.parametrize("engine", MAKERS)
def test_fp16_answers_nearly_the_same(tmp_path: Path, engine: str) -> None:
    pytest.importorskip("onnx")
    ours, theirs = both(engine, tmp_path, "fp16")
    name = ours.spec.inputs[0].name
    batch = {name: np.random.default_rng(0).random((5, 64), np.float32)}
    for output, array in theirs.run(batch).items():
        np.testing.assert_allclose(ours.run(batch)[output], array, atol=0.03)
    ours.close()


@pytest.mark.parametrize("dtype", ["auto", "fp16"])
def test_convolutions_of_onnx_answer_as_on_the_cpu_padded_or_not(
    tmp_path: Path, dtype: str
) -> None:
    onnx_runtime(tmp_path)
    file = onnx_models.classifier(tmp_path / "pictures.onnx")
    spec = ModelSpec("m", "onnxruntime", file, batch=BatchPolicy(max_batch_size=12))
    theirs = load(spec, EngineOptions())
    images = np.random.default_rng(0).random((14, 3, 224, 224), np.float32)
    wanted = theirs.run({"image": images})["scores"]
    near = {"rtol": 2e-2, "atol": 2e-2 * float(np.abs(wanted).max())}
    for options, sizes in (
        (EngineOptions(device="cuda", dtype=dtype), (1, 2, 4, 8, 12)),
        (EngineOptions(device="cuda", dtype=dtype, memory_efficient=True), ()),
    ):
        ours = load(spec, options)
        assert isinstance(ours, OnnxRuntimeEngine)
        assert ours.batch_sizes == sizes

        def ask(rows: int, engine: BatchEngine = ours) -> None:
            answer = engine.run({"image": images[:rows]})["scores"]
            np.testing.assert_allclose(answer, wanted[:rows], **near)

        with ThreadPoolExecutor(3) as threads:
            assert len(list(threads.map(ask, [1, 3, 12, 5, 14, 2, 9, 8, 11, 1] * 3))) == 30
        ours.close()


def wide_onnx(folder: Path) -> Path:
    onnx_runtime(folder)
    return onnx_models.widened(folder / "wide.onnx", WIDE)


def wide_program(folder: Path) -> Path:
    torch_program(folder)
    import torch

    class Wide(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.expand(-1, WIDE) * 1.0).mean(1, keepdim=True)

    rows = torch.export.Dim("rows", min=1, max=ROWS)
    made = torch.export.export(Wide(), (torch.ones(2, 1),), dynamic_shapes=({0: rows},))
    torch.export.save(made, folder / "wide.pt2")
    return folder / "wide.pt2"


@pytest.mark.parametrize(("engine", "make"), [("onnxruntime", wide_onnx), ("torch", wide_program)])
def test_a_batch_for_which_there_is_no_memory_fails_alone(
    tmp_path: Path, engine: str, make: Callable[[Path], Path]
) -> None:
    spec = ModelSpec("m", engine, make(tmp_path), batch=BatchPolicy(max_batch_size=ROWS))
    model = load(spec, EngineOptions(device="cuda"))
    name = model.spec.inputs[0].name
    for _ in range(2):
        with pytest.raises(OutOfMemory) as refused:
            model.run({name: np.ones((ROWS, 1), np.float32)})
        assert not refused.value.fatal
        for _ in range(6):  # graphs are recorded after four
            (answer,) = model.run({name: np.full((2, 1), 3, np.float32)}).values()
            np.testing.assert_allclose(answer, 3, rtol=1e-3)
    model.close()


def test_a_program_that_asks_the_host_on_its_way_goes_on_without_graphs(tmp_path: Path) -> None:
    torch_program(tmp_path)
    import torch

    class Chosen(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.nonzero(x > 0).shape[0]

    rows = torch.export.Dim("rows", min=1, max=32)
    made = torch.export.export(Chosen(), (torch.ones(2, 4),), dynamic_shapes=({0: rows},))
    torch.export.save(made, tmp_path / "chosen.pt2")
    spec = ModelSpec("m", "torch", tmp_path / "chosen.pt2", batch=BatchPolicy(max_batch_size=1))
    model = load(spec, EngineOptions(device="cuda"))
    name = model.spec.inputs[0].name
    for _ in range(10):
        (answer,) = model.run({name: np.ones((3, 4), np.float32)}).values()
        np.testing.assert_array_equal(answer, 12)
    model.close()
