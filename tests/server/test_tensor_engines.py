"""Which engine runs an ONNX file or a plan: by the machine, the configuration and the operator."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import onnx_models
import pytest
import tritonclient.http
from serving import Server

from ds_engines import tensorrt_library
from ds_engines.errors import ConfigError
from ds_serve import extras, tensor_engines
from ds_serve.models import ModelSource, resolve_all
from ds_serve.repository.folder import read_model
from ds_serve.settings import Settings
from ds_serve.supervisor import launch
from ds_serve.text_models import Wish

PLAN = b"ptrt" + bytes(60)


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return onnx_models.mlp(tmp_path / "net.onnx")


def chosen(path: Path, **wish: str) -> ModelSource:
    return resolve_all([str(path)], wish=Wish(**wish))[0]


def a_machine_with(monkeypatch: pytest.MonkeyPatch, cards: str, *packages: str) -> None:
    """With the GPUs that CUDA_VISIBLE_DEVICES names, and these packages to be found."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
    real = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> object:
        if name.partition(".")[0] in ("cuda", "tensorrt", "tensorrt_bindings", "tensorrt_rtx"):
            return object() if name in packages else None
        return real(name, package)

    for module in (tensorrt_library, extras):
        monkeypatch.setattr(module, "find_spec", found)
    monkeypatch.setitem(tensorrt_library.MODULES, "tensorrt_rtx", ("tensorrt_rtx",))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine_with(monkeypatch, "0", "tensorrt", "cuda.bindings")


@pytest.mark.usefixtures("gpu")
def test_tensorrt_runs_onnx_where_there_is_a_gpu_for_it(onnx: Path) -> None:
    source = chosen(onnx)
    assert (source.engine, source.fallback) == ("tensorrt", "onnxruntime")
    assert (
        source.why
        == "net.onnx is an ONNX file, so TensorRT builds it for the GPU and runs it there"
    )
    assert chosen(onnx, device="cuda:0").engine == "tensorrt"
    assert chosen(onnx, device="cpu").engine == "onnxruntime"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt", "openvino"])
def test_the_operators_word_comes_first_and_nothing_takes_its_place(
    onnx: Path, engine: str
) -> None:
    (onnx.parent / "config.pbtxt").write_text('backend: "onnxruntime"')
    source = chosen(onnx, engine=engine)
    assert (source.engine, source.fallback) == (engine, "")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("config", "engine"),
    [
        ('backend: "onnxruntime"', "onnxruntime"),
        ('platform: "onnxruntime_onnx"', "onnxruntime"),
        ('backend: "openvino"', "openvino"),
        ('platform: "tensorrt_plan"', "tensorrt"),
        ("max_batch_size: 4", "tensorrt"),
    ],
)
def test_then_the_configurations(onnx: Path, config: str, engine: str) -> None:
    (onnx.parent / "config.pbtxt").write_text(config)
    assert chosen(onnx).engine == engine


def test_an_onnx_file_that_tensorrt_cannot_run_is_told_another_engine(
    onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_machine_with(monkeypatch, "", "tensorrt", "cuda.bindings")
    said = "no NVIDIA GPU here; --engine onnxruntime runs it on the CPU"
    with pytest.raises(ConfigError, match=said):
        chosen(onnx, engine="tensorrt")


@pytest.mark.parametrize(
    ("cards", "packages", "said"),
    [
        ("", ("tensorrt", "cuda.bindings"), "there is no NVIDIA GPU here; give the ONNX file"),
        ("0", ("cuda.bindings",), "TensorRT is not installed: install NVIDIA's TensorRT"),
        ("0", ("tensorrt",), "cuda-bindings is not installed: pip install 'ds-serve[cuda]'"),
    ],
)
def test_what_a_machine_lacks_for_a_plan_is_said(
    onnx: Path,
    monkeypatch: pytest.MonkeyPatch,
    cards: str,
    packages: tuple[str, ...],
    said: str,
) -> None:
    a_machine_with(monkeypatch, cards, *packages)
    plan = onnx.with_name("other.plan")
    plan.write_bytes(PLAN)
    with pytest.raises(ConfigError, match=r"other\.plan is a TensorRT plan, but") as caught:
        chosen(plan)
    assert said in str(caught.value)
    with pytest.raises(ConfigError, match=r"net\.onnx is an ONNX file that TensorRT is to run"):
        chosen(onnx, engine="tensorrt")
    assert chosen(onnx).engine == "onnxruntime"


@pytest.mark.usefixtures("gpu")
def test_plans_are_tensorrts_alone(tmp_path: Path) -> None:
    for number, name in enumerate(("a.plan", "b.engine", "c.trt", "d.bin")):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(b"vtrt" + bytes(60) if number else PLAN)
        assert chosen(path).engine == "tensorrt"
        assert chosen(path).fallback == ""
    with pytest.raises(ConfigError, match=r"--engine onnxruntime: .*a\.plan is a TensorRT plan"):
        chosen(tmp_path / "0/a.plan", engine="onnxruntime")
    with pytest.raises(ConfigError, match="--device cpu rules out the GPU"):
        chosen(tmp_path / "0/a.plan", device="cpu")


def test_a_plan_and_its_onnx_file_are_one_model(
    onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = onnx.parent / "models/net/1"
    version.mkdir(parents=True)
    (version / "model.plan").write_bytes(PLAN)
    (version / "model.onnx").write_bytes(onnx.read_bytes())
    a_machine_with(monkeypatch, "0", "tensorrt", "cuda.bindings")
    assert chosen(version.parent).artifact == version / "model.plan"
    assert read_model(version.parent, "net")[0].engine == "tensorrt"
    a_machine_with(monkeypatch, "")
    assert chosen(version.parent).artifact == version / "model.onnx"
    assert read_model(version.parent, "net")[0].engine == "onnxruntime"


def test_engines_of_tensors_are_nothing_to_text_models_and_the_other_way_round(
    onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_machine_with(monkeypatch, "")
    assert chosen(onnx, engine="vllm").engine == "onnxruntime"
    assert Wish("tensorrt").for_text == Wish()
    assert Wish("vllm").for_text == Wish("vllm")
    with pytest.raises(ConfigError, match="--engine is 'tensorrrt'; it must be auto or vllm"):
        chosen(onnx, engine="tensorrrt")


def test_an_engine_is_not_asked_for_files_that_are_anothers(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(bytes(4) + b"TFL3" + bytes(8))
    with pytest.raises(ConfigError, match=r"--engine tensorrt: .*net\.tflite is a file that openv"):
        chosen(path, engine="tensorrt")
    assert chosen(path, engine="openvino").engine == "openvino"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_the_workers_device_is_the_one_asked_for(onnx: Path, device: str) -> None:
    settings = Settings(device=device)
    source = chosen(onnx, device=device)
    launch.check_source(settings, source)
    assert tensor_engines.device_of(source.engine, settings.device) == (
        "cuda" if device == "auto" else device
    )


def archive(path: Path, member: str) -> Path:
    """Of PyTorch's, by what is in it."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(f"net/{member}", b"")
    return path


@pytest.mark.parametrize(
    ("member", "what"),
    [("constants.pkl", "TorchScript"), ("data/aotinductor/model/a.so", "an AOTInductor package")],
)
def test_files_that_hold_code_are_for_those_who_trust_them(
    tmp_path: Path, member: str, what: str
) -> None:
    file = archive(tmp_path / "net.pt", member)
    with pytest.raises(ConfigError, match=f"net.pt is {what}, .*: give --trust if you trust"):
        chosen(file)
    source = resolve_all([str(file)], wish=Wish(trust=True, device="cpu"))[0]
    assert (source.engine, source.why) == (
        "torch",
        f"net.pt is {what}, which is trusted, so PyTorch runs it on the CPU",
    )


def test_what_a_client_sends_is_never_trusted(tmp_path: Path) -> None:
    data = archive(tmp_path / "net.pt", "constants.pkl").read_bytes()
    (tmp_path / "models").mkdir()
    given = ("--model-control-mode", "explicit", "--open-control", "--trust")
    with (
        Server("--model-repository", tmp_path / "models", *given) as server,
        tritonclient.http.InferenceServerClient(server.http_address) as client,
        pytest.raises(tritonclient.http.InferenceServerException, match=r"TorchScript.*--trust"),
    ):
        client.load_model("net", config="{}", files={"file:1/model.pt2": data})


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("device", ["cpu,cpu", "gpu", "rocm", "cuda:0,"])
def test_other_devices_are_refused(onnx: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"--device {device}: model 'net' runs on NVIDIA GPUs"):
        launch.check_source(Settings(device=device), chosen(onnx))


@pytest.mark.parametrize(
    ("device", "config", "places"),
    [
        ("cuda:0,1", "", ["cuda:0", "cuda:1"]),
        ("cuda:1", "instance_group { kind: KIND_GPU gpus: [0, 1] }", ["cuda:1"]),
        ("cuda", "instance_group { kind: KIND_GPU gpus: [0, 1] count: 2 }", ["cuda:0", "cuda:1"]),
        ("auto", "instance_group { gpus: 1 }", ["cuda:1"]),
        ("auto", "", ["auto"]),
        ("cpu,cpu", "instance_group { gpus: 1 }", ["cpu", "cpu"]),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_a_worker_for_each_device(
    tmp_path: Path, device: str, config: str, places: list[str]
) -> None:
    file = tmp_path / "config.pbtxt"
    file.write_text(config)
    assert tensor_engines.devices_of("onnxruntime", device, file) == places
    assert tensor_engines.devices_of("openvino", "auto", file) == ["cpu"]


def test_other_engines_stay_on_the_cpu(onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine_with(monkeypatch, "")
    source = chosen(onnx)
    assert tensor_engines.device_of(source.engine, "auto") == "cpu"
    assert tensor_engines.device_of(source.engine, "cuda:1") == "cuda:1"
    assert source.why.endswith("ONNX Runtime runs it on the CPU")
    with pytest.raises(ConfigError, match="runs on openvino, which has only cpu here"):
        launch.check_source(Settings(device="cuda"), chosen(onnx, engine="openvino"))
    with pytest.raises(ConfigError, match="has auto, cpu, cuda and rocm"):
        launch.check_source(Settings(device="cuda:0,x"), source)
