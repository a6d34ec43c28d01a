"""PyTorch modules frozen to ONNX and `.pt2`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from digits import Net, answers, arrays, as_model, trained
from torch import nn

import ds_quantize
from ds_engines.base import EngineOptions, load
from ds_engines.spec import ModelSpec
from ds_quantize import exporting, sources, torch_export
from ds_quantize.errors import SourceError
from ds_quantize.forms import TorchModel


class Two(nn.Module):
    """Two inputs with two dynamic axes, two outputs."""

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        weighed = tokens * mask
        return {"sum": weighed.sum(1), "weighed": weighed}


class Choosy(nn.Module):
    """Decides by the values that it is given, which no graph can."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_the_file_is_onnx_whatever_its_name_is(tmp_path: Path) -> None:
    module = trained().module
    images = arrays()[0]
    path = ds_quantize.export(module, tmp_path / "model.pt", example=torch.tensor(images[:4]))
    assert path == tmp_path / "model.pt"
    for rows in (1, 3, 64):
        with torch.no_grad():
            wanted = module(torch.tensor(images[:rows])).numpy()
        np.testing.assert_allclose(
            answers(path, images[:rows])["output"], wanted, rtol=1e-4, atol=1e-4
        )


def test_operators_are_fused_and_no_source_is_told(tmp_path: Path) -> None:
    path = torch_export.to_onnx(as_model(Net(4)), tmp_path / "net.onnx").path
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Conv") == 4
    assert "BatchNormalization" not in kinds
    assert "Dropout" not in kinds
    assert b".py" not in path.read_bytes()


def test_several_inputs_outputs_and_dynamic_axes(tmp_path: Path) -> None:
    example = (torch.rand(2, 5), torch.rand(2, 5))
    axes = {name: {0: "batch", 1: "tokens"} for name in ("tokens", "mask")}
    path = ds_quantize.export(
        Two(), tmp_path / "two.onnx", example, outputs=("sum", "weighed"), axes=axes
    )
    spec = ModelSpec(name="two", engine="onnxruntime", artifact=path)
    engine = load(spec, EngineOptions())
    assert [tensor.shape for tensor in engine.spec.inputs] == [(-1, -1), (-1, -1)]
    tokens, mask = np.random.default_rng(0).random((2, 3, 7), np.float32)
    found = engine.run({"tokens": tokens, "mask": mask})
    np.testing.assert_allclose(found["sum"], (tokens * mask).sum(1), rtol=1e-5)
    np.testing.assert_allclose(found["weighed"], tokens * mask, rtol=1e-5)


class Places(nn.Module):
    """Knows eight places, so that no more tokens than these can be."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Embedding(8, 4)

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        return output.unsqueeze(2) + self.place.weight[: output.shape[1]]


def test_an_axis_may_have_a_greatest_length(tmp_path: Path) -> None:
    axes = {"output": {0: "batch", 1: "tokens<=8"}}
    example = {"output": np.ones((2, 4), np.float32)}
    with pytest.raises(SourceError, match="cannot be exported"):
        ds_quantize.export(
            Places(), tmp_path / "x", example, axes={"output": {0: "batch", 1: "tokens"}}
        )
    path = ds_quantize.export(Places(), tmp_path / "places.pt2", example, axes=axes)
    model = sources.read(str(path)).model
    assert isinstance(model, TorchModel)
    batch, tokens = model.axes["output"].values()
    assert batch == "batch"
    assert tokens.endswith("<=8")
    written = torch_export.to_onnx(model, tmp_path / "places.onnx").path
    spec = ModelSpec(name="places", engine="onnxruntime", artifact=written)
    engine = load(spec, EngineOptions())
    for tokens in (1, 8):
        found = engine.run({"output": np.ones((3, tokens), np.float32)})
        assert found["output_"].shape == (3, tokens, 4)
    engine.close()


def test_names_and_axes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    given = (Two(), tmp_path / "x", (torch.rand(2, 5), torch.rand(2, 5)))
    with pytest.raises(SourceError, match="output 1 is called 'mask', as an input is"):
        ds_quantize.export(*given, outputs=("sum", "mask"))
    with pytest.raises(SourceError, match="two outputs are called 'sum'"):
        ds_quantize.export(*given, outputs=("sum", "sum"))
    with pytest.raises(SourceError, match="axes names 'ids'; inputs are 'tokens', 'mask'"):
        ds_quantize.export(*given, axes={"ids": {0: "batch"}})
    with pytest.raises(SourceError, match="axes of 'mask': there is no axis 2"):
        ds_quantize.export(*given, axes={"mask": {2: "batch"}})
    with pytest.raises(SourceError, match="'tokens<=many' is no axis"):
        ds_quantize.export(*given, axes={"mask": {1: "tokens<=many"}})


def test_inputs_by_name_may_come_in_any_order() -> None:
    tokens, mask = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    model = torch_export.described(Two(), {"mask": mask, "tokens": tokens})
    assert list(model.example) == ["tokens", "mask"]
    assert model.outputs == ("output_0", "output_1")


def test_a_program_is_read_back(tmp_path: Path) -> None:
    model = trained()
    path = torch_export.to_pt2(model, tmp_path / "net.pt2")
    images = torch.tensor(arrays()[0][:7])
    with torch.no_grad():
        found = torch.export.load(path).module()(images)
        torch.testing.assert_close(found, model.module(images))


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the module Choosy cannot be exported: GuardOnData"):
        ds_quantize.export(Choosy(), tmp_path / "choosy.onnx", torch.rand(2, 2))
    assert not list(tmp_path.iterdir())
    with pytest.raises(SourceError, match="gives 1 outputs, and 2 are named"):
        ds_quantize.export(Net(4), tmp_path / "x", arrays()[0][:2], outputs=("a", "b"))
    with pytest.raises(SourceError, match=r"takes 1 inputs \(image\), and 2 examples"):
        ds_quantize.export(Net(4), tmp_path / "x", (torch.rand(2, 1, 8, 8), torch.rand(2)))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_eager_against_exported(tmp_path: Path) -> None:
    model = trained()
    onnx_file = torch_export.to_onnx(model, tmp_path / "net.onnx").path
    program = torch_export.to_pt2(model, tmp_path / "net.pt2")
    eager, *exported = exporting.compare(model, [onnx_file, program], threads=1, seconds=0.05)
    assert [side.name for side in (eager, *exported)] == ["eager", "net.onnx", "net.pt2"]
    for side in exported:
        error, largest = side.errors["logits"]
        assert error < 1e-3
        assert largest > 1
        assert side.size_bytes == (tmp_path / side.name).stat().st_size
    for side in (eager, *exported):
        assert [timing.batch for timing in side.timings] == [1, 8, 32]
        assert side.memory_bytes is None or side.memory_bytes > 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "from digits import Net\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return Net(4), torch.rand(2, 1, 8, 8)\n"
    )
    support = Path(__file__).parents[1] / "support"
    program = Path(sys.executable).with_name("ds-quantize")
    done = subprocess.run(
        [program, "export", "net.py:make", "-o", "out/net.bin", "--seconds", "0.05"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(support), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for said in ("largest error of output", "median latency, batch 32", "eager", "net.bin"):
        assert said in done.stdout
    assert onnx.load(tmp_path / "out/net.bin").graph.node[0].op_type == "Conv"
