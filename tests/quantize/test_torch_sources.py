"""PyTorch modules as sources: factories, exported programs, modules in memory."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import ds_quantize
from ds_quantize import data, sources, stored
from ds_quantize.errors import SourceError
from ds_quantize.forms import TorchModel
from ds_quantize.torch_methods.modules import outputs
from ds_quantize.torch_methods.quiet import quiet

FILE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(16, width)
        self.second = nn.Linear(width, 4)
        self.last = lambda x: x * 2

    def forward(self, pixels):
        return self.last(self.second(torch.relu(self.first(pixels))))

def factory():
    return Net(WIDTH)

def pair():
    return Net(32), torch.zeros(1, 16)

def open_axes():
    return Net(32), torch.zeros(1, 16), {"pixels": {0: "batch<=64"}}

def broken():
    raise KeyError("weights")

def other():
    return "a module"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(FILE.replace("WIDTH", "32"))
    return path


def rows(folder: Path) -> data.Data:
    np.savez(folder / "rows.npz", pixels=np.ones((5, 16), np.float32))
    return data.load(str(folder / "rows.npz"))


def test_a_factory_gives_the_same_model_each_time(file: Path, tmp_path: Path) -> None:
    calibration = rows(tmp_path)
    first = sources.read(f"{file}:factory", calibration)
    again = sources.read(f"{file}:factory", calibration)
    other_seed = sources.read(f"{file}:factory", calibration, seed=1)
    assert first.digest == again.digest != other_seed.digest
    assert isinstance(first.model, TorchModel)
    assert list(first.model.example) == ["pixels"]
    assert first.model.axes == {"pixels": {0: "batch"}}
    file.write_text(FILE.replace("WIDTH", "32") + "\n# changed\n")
    assert sources.read(f"{file}:factory", calibration).digest != first.digest


def test_an_example_of_one_row_does(file: Path) -> None:
    model = sources.read(f"{file}:pair").model
    assert isinstance(model, TorchModel)
    assert model.example["pixels"].shape == (2, 16)


def test_a_factory_may_name_the_axes(file: Path) -> None:
    found = sources.read(f"{file}:open_axes")
    assert isinstance(found.model, TorchModel)
    assert found.model.axes == {"pixels": {0: "batch<=64"}}
    assert found.digest != sources.read(f"{file}:pair").digest


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("factory", "nothing says what its inputs look like"),
        ("broken", "fails: KeyError: 'weights'"),
        ("other", "gives a str; it must give a torch.nn.Module"),
        ("none", "has no function 'none'"),
    ],
)
def test_a_factory_that_gives_no_model_is_told(name: str, said: str, file: Path) -> None:
    with pytest.raises(SourceError, match=re.escape(said)):
        sources.read(f"{file}:{name}")


def test_a_module_is_kept_whole_in_a_stage(file: Path, tmp_path: Path) -> None:
    """Also one whose class is in the user's file, and that holds a lambda."""
    model = sources.read(f"{file}:pair").model
    assert isinstance(model, TorchModel)
    record = stored.put(model, tmp_path)
    file.unlink()
    back = stored.get(record, tmp_path)
    assert isinstance(back, TorchModel)
    inputs = {"pixels": np.ones((3, 16), np.float32)}
    np.testing.assert_array_equal(outputs(back, inputs)["output"], outputs(model, inputs)["output"])


class Two(nn.Module):
    """Two inputs with two dynamic axes."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left.sum(-1) + right.sum(-1)


def test_an_exported_program_brings_its_inputs_and_axes(tmp_path: Path) -> None:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = {"left": {0: batch, 1: length}, "right": {0: batch}}
    example = (torch.zeros(2, 5), torch.zeros(2, 3))
    path = tmp_path / "two.any"
    with quiet(), path.open("wb") as opened:
        torch.export.save(torch.export.export(Two(), example, dynamic_shapes=shapes), opened)
    model = sources.read(str(path)).model
    assert isinstance(model, TorchModel)
    assert model.example["left"].shape == (2, 5)
    assert set(model.axes["left"]) == {0, 1}
    assert set(model.axes["right"]) == {0}
    assert model.axes["left"][0] == model.axes["right"][0] == "batch"


def test_a_file_that_says_not_how_to_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(SourceError, match=r"torch\.save or TorchScript.*give FILE\.py:FACTORY"):
        sources.read(str(path))


@pytest.mark.slow
def test_a_module_in_memory_in_one_line(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
    example = torch.randn(4, 64)
    with torch.no_grad():
        expected = module(example).numpy()
    saved = ds_quantize.quantize_dynamic(module, example).save(tmp_path / "quantized_model.pt")
    session = ort.InferenceSession(saved)
    found = session.run(None, {session.get_inputs()[0].name: example.numpy()})[0]
    assert saved.stat().st_size < 0.5 * sum(p.numel() * 4 for p in module.parameters())
    np.testing.assert_allclose(found, expected, atol=0.05)
