"""PyTorch's numbers and layers; files that hold code, which are run for those who trust them."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.http
from serving import Server

from ds_engines import config_pbtxt
from ds_engines.base import BatchEngine, EngineOptions, load
from ds_engines.errors import ConfigError, EngineFailure, LoadError, Unsupported
from ds_engines.spec import BatchPolicy, ModelSpec
from ds_serve.models import resolve_all
from ds_serve.text_models import Wish

SCRIPT = """
platform: "pytorch_libtorch" max_batch_size: 8
input [{ name: "INPUT__0" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [3] }]
"""
PACKAGE = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [4] }
input { name: "scale" data_type: TYPE_FP32 dims: [1] }
output { name: "far" data_type: TYPE_FP32 dims: [4] }
output { name: "y" data_type: TYPE_FP32 dims: [3] }
"""


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 64), torch.nn.Linear(64, 3)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.last(torch.relu(self.first(x))) * scale, "far": (x * scale).log()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def exported(net: Net) -> torch.export.ExportedProgram:
    rows = torch.export.Dim("rows", min=1, max=64)
    given = (torch.rand(3, 4), torch.rand(3, 1))
    return torch.export.export(net, given, dynamic_shapes={"x": {0: rows}, "scale": {0: rows}})


@pytest.fixture(scope="module")
def program(exported: torch.export.ExportedProgram, folder: Path) -> Path:
    torch.export.save(exported, folder / "net.pt2")
    return folder / "net.pt2"


@pytest.fixture(scope="module")
def script(folder: Path) -> Path:
    torch.manual_seed(1)
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(torch.nn.Linear(4, 3)).save(folder / "script.pt")
    return folder / "script.pt"


@pytest.fixture(scope="module")
def package(exported: torch.export.ExportedProgram, folder: Path) -> Path:
    """Compiled for this processor, which takes some time."""
    if shutil.which("g++") is None:
        pytest.skip("AOTInductor compiles with g++")
    file = folder / "compiled.pt2"
    with warnings.catch_warnings(action="ignore"):
        torch._inductor.aoti_compile_and_package(exported, package_path=str(file))
    return file.rename(folder / "compiled.pt")


def spec_of(artifact: Path, config: str = "") -> ModelSpec:
    spec = ModelSpec("m", "torch", artifact, batch=BatchPolicy(max_batch_size=8))
    if not config:
        return spec
    file = artifact.with_suffix(".pbtxt")
    file.write_text(config)
    return config_pbtxt.described(spec, config_pbtxt.read(file), str(file))


def engine_of(artifact: Path, config: str = "", **options: Any) -> BatchEngine:
    return load(spec_of(artifact, config), EngineOptions(threads=2, **options))


def rows(count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(count)
    return {
        "x": random.random((count, 4), np.float32) + 0.1,
        "scale": random.random((count, 1), np.float32) + 0.1,
    }


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_numbers_are_others_and_answers_the_same(program: Path, dtype: str) -> None:
    engine, whole = engine_of(program, dtype=dtype), engine_of(program)
    assert engine.spec == whole.spec
    found, wanted = engine.run(rows(5)), whole.run(rows(5))
    assert found["y"].dtype == np.float32
    np.testing.assert_allclose(found["y"], wanted["y"], atol=0.02)
    assert np.array_equal(found["y"], wanted["y"]) == (dtype == "fp32")


def test_weights_of_16_bits_are_not_made_fp32(tmp_path: Path) -> None:
    half = torch.export.export(torch.nn.Linear(4, 3).half(), (torch.ones(2, 4).half(),))
    torch.export.save(half, tmp_path / "half.pt2")
    with pytest.raises(Unsupported, match=r"--dtype fp32: .*'weight', which is torch\.float16"):
        engine_of(tmp_path / "half.pt2", dtype="fp32")


def test_answers_are_the_same_in_less_memory(program: Path) -> None:
    found = engine_of(program, memory_efficient=True).run(rows(3))
    np.testing.assert_array_equal(found["y"], engine_of(program).run(rows(3))["y"])


def test_where_it_runs_is_logged(program: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ds_engines.torch"):
        engine_of(program, device="auto")
    assert caplog.messages == [f"model m: PyTorch {torch.__version__} on the CPU"]


def test_the_first_layer_that_yields_infinity_is_named(program: Path) -> None:
    engine = engine_of(program, debug_numerics=True)
    assert np.isfinite(engine.run(rows(2))["far"]).all()
    batch = rows(2)
    batch["x"][1, :2] = 0
    said = r"layer '\w*/?log' \(aten\.log\.default\) is the first .*: 2 infinite of 8 numbers"
    with pytest.raises(EngineFailure, match=said):
        engine.run(batch)
    batch["x"][1, :2] = np.nan  # sent by the client
    assert np.isnan(engine.run(batch)["far"]).any()


def test_layers_are_looked_into_in_the_numbers_that_are_computed_in(tmp_path: Path) -> None:
    big = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        big[1].weight.fill_(60000)
    dim = torch.export.Dim("rows", min=1)
    made = torch.export.export(big, (torch.ones(3, 2),), dynamic_shapes=({0: dim},))
    torch.export.save(made, tmp_path / "big.pt2")
    batch = {"input": np.ones((1, 2), np.float32)}
    assert engine_of(tmp_path / "big.pt2", debug_numerics=True).run(batch)["output"][0, 0] == 120000
    half = engine_of(tmp_path / "big.pt2", debug_numerics=True, dtype="fp16")
    with pytest.raises(
        EngineFailure, match=r"'1/linear' \(aten\.linear\.default\).*: 2 infinite of"
    ):
        half.run(batch)


@pytest.mark.slow
def test_code_is_refused_by_name_unless_it_is_trusted(script: Path, package: Path) -> None:
    for file, what in ((script, "TorchScript"), (package, "an AOTInductor package")):
        with pytest.raises(ConfigError, match=f"is {what}.*: give --trust if you trust who made"):
            resolve_all([str(file)])
        with pytest.raises(LoadError, match=f"is {what}.*--trust"):
            engine_of(file)
        (source,) = resolve_all([str(file)], wish=Wish(trust=True))
        assert (source.engine, source.why.split(",")[0]) == ("torch", f"{file.name} is {what}")
        with pytest.raises(LoadError, match=r"does not say what its inputs are: .*config\.pbtxt"):
            engine_of(file, trust=True)
        config = SCRIPT if file == script else PACKAGE
        with pytest.raises(
            Unsupported, match=r"--debug-numerics: .* give what torch\.export saved"
        ):
            engine_of(file, config, trust=True, debug_numerics=True)


def test_torchscript_answers_as_the_module_does(script: Path) -> None:
    engine = engine_of(script, SCRIPT, trust=True)
    assert (engine.spec.platform, engine.spec.outputs[0].batch_axis) == ("pytorch_libtorch", 0)
    x = rows(3)["x"]
    with warnings.catch_warnings(action="ignore"), torch.inference_mode():
        wanted = torch.jit.load(script)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(engine.run({"INPUT__0": x})["OUTPUT__0"], wanted)
    half = engine_of(script, SCRIPT, trust=True, dtype="bf16").run({"INPUT__0": x})["OUTPUT__0"]
    np.testing.assert_allclose(half, wanted, atol=0.05)
    by_name = engine_of(script, SCRIPT.replace("INPUT__0", "input"), trust=True)
    np.testing.assert_array_equal(by_name.run({"input": x})["OUTPUT__0"], wanted)


@pytest.mark.slow
def test_a_package_answers_as_the_module_does_one_row_too(package: Path, net: Net) -> None:
    engine = engine_of(package, PACKAGE, trust=True)
    assert engine.spec.platform == "pytorch_aotinductor"
    for count in (1, 2, 7):
        batch = rows(count)
        with torch.inference_mode():
            wanted = net(*(torch.from_numpy(batch[name]) for name in ("x", "scale")))
        found = engine.run(batch)
        for name in ("y", "far"):
            np.testing.assert_allclose(found[name], wanted[name].numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(EngineFailure):
        engine.run({"x": np.ones((2, 5), np.float32), "scale": np.ones((2, 1), np.float32)})
    with pytest.raises(Unsupported, match="compiled for the numbers"):
        engine_of(package, PACKAGE, trust=True, dtype="fp16")


@pytest.mark.slow
def test_code_that_is_trusted_is_served(script: Path, package: Path, tmp_path: Path) -> None:
    for name, file, config in (("script", script, SCRIPT), ("compiled", package, PACKAGE)):
        place = tmp_path / name / "1"
        place.mkdir(parents=True)
        (place / f"model{file.suffix}").write_bytes(file.read_bytes())
        (place.parent / "config.pbtxt").write_text(config)
    with (
        Server("--model-repository", tmp_path, "--trust") as server,
        tritonclient.http.InferenceServerClient(server.http_address) as client,
    ):
        given = tritonclient.http.InferInput("INPUT__0", [2, 4], "FP32")
        given.set_data_from_numpy(np.ones((2, 4), np.float32))
        assert client.infer("script", [given]).as_numpy("OUTPUT__0").shape == (2, 3)
        inputs = []
        for name, array in rows(1).items():
            inputs.append(tritonclient.http.InferInput(name, list(array.shape), "FP32"))
            inputs[-1].set_data_from_numpy(array)
        answer = client.infer("compiled", inputs).as_numpy("far")
    np.testing.assert_allclose(answer, np.log(rows(1)["x"] * rows(1)["scale"]), rtol=1e-4)
