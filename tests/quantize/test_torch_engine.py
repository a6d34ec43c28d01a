"""The PyTorch engine: real programs of torch.export, and what is refused."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from serving import Server

from ds_engines import layers
from ds_engines.base import BatchEngine, EngineOptions, load
from ds_engines.errors import ConfigError, EngineFailure, LoadError, Unsupported
from ds_engines.spec import BatchPolicy, ModelSpec
from ds_serve.models import resolve


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.register_buffer("shift", torch.arange(3.0))

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, Any]:
        return {"y": self.layer(x) * scale, "parts": (x + 1, self.shift + x.sum(1, keepdim=True))}


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def program(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("programs") / "net.pt2"
    rows = torch.export.Dim("rows", min=1, max=16)
    given = (torch.randn(2, 4), torch.randn(2, 1))
    exported = torch.export.export(net, given, dynamic_shapes={"x": {0: rows}, "scale": {0: rows}})
    torch.export.save(exported, file)
    return file


def engine_of(artifact: Path, **options: Any) -> BatchEngine:
    spec = ModelSpec("m", "torch", artifact, batch=BatchPolicy(max_batch_size=64))
    return load(spec, EngineOptions(**options))


def test_the_program_says_what_it_takes_and_gives(program: Path) -> None:
    spec = engine_of(program).spec
    assert [(t.name, t.datatype, t.shape, t.batch_axis) for t in spec.inputs] == [
        ("x", "FP32", (-1, 4), 0),
        ("scale", "FP32", (-1, 1), 0),
    ]
    assert [(t.name, t.shape, t.batch_axis) for t in spec.outputs] == [
        ("y", (-1, 3), 0),
        ("parts_0", (-1, 4), 0),
        ("parts_1", (-1, 3), 0),
    ]
    assert spec.batch.max_batch_size == 16, "the program was exported for no more"


def test_answers_are_the_modules(program: Path, net: Net) -> None:
    engine = engine_of(program)
    x, scale = torch.randn(5, 4), torch.randn(5, 1)
    found = engine.run({"x": x.numpy(), "scale": scale.numpy()})
    with torch.inference_mode():
        wanted = net(x, scale)
    np.testing.assert_allclose(found["y"], wanted["y"].numpy(), rtol=1e-5)
    np.testing.assert_allclose(found["parts_1"], wanted["parts"][1].numpy(), rtol=1e-5)
    assert list(engine.run({"x": x.numpy(), "scale": scale.numpy()}, ("y",))) == ["y"]


def test_each_layer_of_a_program_takes_time(program: Path) -> None:
    spec = ModelSpec("m", "torch", program, batch=BatchPolicy(max_batch_size=64))
    batch = {"x": np.ones((3, 4), np.float32), "scale": np.ones((3, 1), np.float32)}
    found = layers.profile(spec, EngineOptions(), batch, 0.05)
    assert (found.engine, found.runs >= 5) == ("torch", True)
    assert [layer.op for layer in found.layers] == [
        "aten.linear.default", "aten.mul.Tensor", "aten.add.Tensor", "aten.sum.dim_IntList",
        "aten.add.Tensor",
    ]  # fmt: skip
    assert found.layers[0].name == "layer/linear"
    assert all(layer.us > 0 for layer in found.layers)


def test_a_batch_that_the_program_does_not_take_fails_alone(program: Path) -> None:
    engine = engine_of(program)
    with pytest.raises(EngineFailure, match="PyTorch failed: "):
        engine.run({"x": np.zeros((2, 4), np.float32), "scale": np.zeros((3, 1), np.float32)})
    with pytest.raises(EngineFailure, match="<= 16"):
        engine.run({"x": np.zeros((17, 4), np.float32), "scale": np.zeros((17, 1), np.float32)})


def test_bfloat16_travels_as_its_bits(tmp_path: Path) -> None:
    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    rows = torch.export.Dim("rows", min=1)
    given = (torch.ones(2, 3, dtype=torch.bfloat16),)
    exported = torch.export.export(Double(), given, dynamic_shapes={"x": {0: rows}})
    torch.export.save(exported, tmp_path / "double.pt2")
    engine = engine_of(tmp_path / "double.pt2")
    assert (engine.spec.inputs[0].datatype, engine.spec.outputs[0].name) == ("BF16", "output")
    one = torch.ones(1, 3, dtype=torch.bfloat16)
    found = engine.run({"x": one.view(torch.uint16).numpy()})["output"]
    assert torch.from_numpy(found).view(torch.bfloat16).tolist() == [[2, 2, 2]]


class Boom:
    """Writes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._file,)


@pytest.mark.parametrize("part", ["data/weights/model.pt", "data/sample_inputs/model.pt"])
def test_nothing_is_unpickled(program: Path, tmp_path: Path, part: str) -> None:
    mark, bad = tmp_path / "mark", tmp_path / "bad.pt2"
    buffer = io.BytesIO()
    torch.save(Boom(mark), buffer, pickle_module=pickle)
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            if not name.endswith(part):
                target.writestr(name, source.read(name))
        target.writestr(f"net/{part}", buffer.getvalue())
    with pytest.raises(LoadError):
        engine_of(bad)
    assert not mark.exists()


def test_a_weight_that_is_pickled_is_named(program: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt2"
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("model_weights_config.json"):
                data = data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            target.writestr(name, data)
    with pytest.raises(LoadError, match=r"layer\.weight is pickled"):
        engine_of(bad)


@pytest.mark.parametrize("whole", [True, False])
def test_pickles_and_torchscript_are_refused_with_the_way_out(
    net: Net, tmp_path: Path, whole: bool
) -> None:
    torch.save(net if whole else net.state_dict(), tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=r"a pickle.*export the model with torch\.export"):
        resolve(str(tmp_path / "net.pt"))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.trace(torch.nn.Linear(4, 3), torch.zeros(1, 4)).save(tmp_path / "script.pt")
    with pytest.raises(ConfigError, match="TorchScript"):
        resolve(str(tmp_path / "script.pt"))


def test_a_file_cut_short_is_refused(program: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.pt2").write_bytes(program.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="no whole archive"):
        resolve(str(tmp_path / "cut.pt2"))


@pytest.mark.parametrize(
    "options",
    [{"device": "tpu"}, {"device": "rocm"}, {"device": "cuda:1"}, {"quantization": "int8"}],
)
def test_options_that_it_cannot_honour(program: Path, options: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        engine_of(program, **options)


def test_it_is_served_whatever_the_file_is_called(program: Path, net: Net, tmp_path: Path) -> None:
    file = tmp_path / "frozen.pt"
    file.write_bytes(program.read_bytes())
    with Server("--model", file) as server:
        inputs = [
            {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]},
            {"name": "scale", "shape": [1, 1], "datatype": "FP32", "data": [2]},
        ]
        answer = httpx2.post(f"{server.http}/v2/models/frozen/infer", json={"inputs": inputs})
    with torch.inference_mode():
        wanted = net(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[2.0]]))["y"]
    found = {one["name"]: one["data"] for one in answer.json()["outputs"]}
    np.testing.assert_allclose(found["y"], wanted[0].numpy(), rtol=1e-5)
