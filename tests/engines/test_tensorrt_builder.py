"""Plans of small models by TensorRT for RTX, on a machine without a GPU: what is in them."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX builds these plans")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from ds_engines import tensorrt_library, tensorrt_store  # noqa: E402
from ds_engines.base import EngineOptions  # noqa: E402
from ds_engines.errors import LoadError  # noqa: E402
from ds_engines.spec import BatchPolicy, ModelSpec  # noqa: E402
from ds_engines.tensorrt_builder import BuildOptions, Built, _Builder, build  # noqa: E402
from ds_engines.tensorrt_layers import PlanLayer  # noqa: E402
from ds_engines.tensorrt_library import Library  # noqa: E402

SHAPE = ["n", 3, 16, 16]


@pytest.fixture(scope="module")
def library() -> Library:
    return tensorrt_library.require("tensorrt_rtx")


def network(path: Path, *, quantized: bool = False, half: bool = False) -> Path:
    """A convolution, a rectifier and a matrix product."""
    rng = np.random.default_rng(0)
    real = np.float16 if half else np.float32
    weights = {
        "w": rng.normal(0, 0.1, (8, 3, 3, 3)).astype(real),
        "v": rng.normal(0, 0.1, (2048, 10)).astype(real),
    }
    nodes, constants = [], []

    def rounded(name: str) -> str:
        if not quantized:
            return name
        nodes.append(helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_d"]))
        return f"{name}_d"

    for name, value in weights.items():
        constants.append(numpy_helper.from_array(value, name))
    constants.append(numpy_helper.from_array(np.array(0.02, np.float32), "s"))
    constants.append(numpy_helper.from_array(np.array(0, np.int8), "z"))
    nodes.append(
        helper.make_node("Conv", [rounded("x"), rounded("w")], ["c"], "conv", pads=[1] * 4)
    )
    nodes.append(helper.make_node("Relu", ["c"], ["r"], "relu"))
    nodes.append(helper.make_node("Flatten", ["r"], ["f"], "flat"))
    nodes.append(helper.make_node("MatMul", [rounded("f"), rounded("v")], ["y"], "dense"))
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, SHAPE)],
        [helper.make_tensor_value_info("y", kind, ["n", 10])],
        constants,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def layer_of(built: Built, source: str, *kinds: str) -> PlanLayer:
    """The layer that was made of that node and is one of those kinds."""
    (found,) = (e for e in built.layers if source in e.sources and e.kind in kinds)
    return found


def test_what_is_in_a_plan_is_read_back(library: Library, tmp_path: Path) -> None:
    phases: list[tuple[str, float]] = []
    source = network(tmp_path / "net.onnx")
    built = build(
        library, source, BuildOptions(batches=(1, 4, 16)), watch=lambda *step: phases.append(step)
    )
    assert built.plan[:4] in tensorrt_store.MAGIC
    (x,), (y,) = built.inputs, built.outputs
    assert (x.name, x.datatype, x.shape) == ("x", "FP32", (-1, 3, 16, 16))
    assert x.profile == ((1, 3, 16, 16), (4, 3, 16, 16), (16, 3, 16, 16))
    assert (y.name, y.datatype, y.shape, y.profile) == ("y", "FP32", (-1, 10), None)
    conv = layer_of(built, "conv", "correlation")
    assert conv.inputs == conv.outputs == ("FP32",)
    shares = [share for _, share in phases]
    assert len({phase for phase, _ in phases}) > 2
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.5 < shares[-1] <= 1


def test_int8_layers_really_are_int8(library: Library, tmp_path: Path) -> None:
    built = build(library, network(tmp_path / "net.onnx", quantized=True), BuildOptions())
    conv = layer_of(built, "conv", "correlation")
    dense = layer_of(built, "dense", "gemm")
    for layer in (conv, dense):
        assert layer.inputs == ("INT8",)
        assert layer.constants[0] == "INT8", "its weights"
    assert [each.datatype for each in (*built.inputs, *built.outputs)] == ["FP32", "FP32"]


def test_fp16_layers_really_are_fp16(library: Library, tmp_path: Path) -> None:
    built = build(library, network(tmp_path / "net.onnx", half=True), BuildOptions())
    assert layer_of(built, "conv", "correlation").inputs == ("FP16",)
    assert [each.datatype for each in (*built.inputs, *built.outputs)] == ["FP16", "FP16"]


def test_options_of_a_build(library: Library, tmp_path: Path) -> None:
    source = network(tmp_path / "net.onnx")
    options = BuildOptions(level=0, sparse=True, workspace=64)
    assert layer_of(build(library, source, options), "conv", "correlation").inputs == ("FP32",)
    with pytest.raises(LoadError, match=r"no shapes that vary, and input 'x' may be \[1, 3, "):
        build(library, source, BuildOptions(dla=0))
    with pytest.raises(LoadError, match=r"dla is 0, but tensorrt_rtx .* finds no DLA cores"):
        build(library, source, BuildOptions(dla=0, batches=(1, 1, 1)))


def test_layers_within_become_outputs_where_they_are_to_be_shown(
    library: Library, tmp_path: Path
) -> None:
    source = network(tmp_path / "net.onnx", quantized=True)
    shown = build(library, source, BuildOptions(level=0), shown={"c", "x_q", "x_d", "f", "y", "x"})
    kinds = {tensor.name: tensor.datatype for tensor in shown.outputs}
    # Numbers that are quantized are none of real numbers.
    assert kinds == {"y": "FP32", "c": "FP32", "x_d": "FP32", "f": "FP32"}
    assert next(each.shape for each in shown.outputs if each.name == "c") == (-1, 8, 16, 16)


def test_fp16_that_is_asked_for_takes_a_file_of_fp16_where_types_are_the_files(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))
    source = network(tmp_path / "net.onnx")
    asked = tensorrt_store.granted(BuildOptions(), EngineOptions(dtype="fp16"))
    half, options = tensorrt_store.prepared(library, source, asked)
    assert half.is_relative_to(tmp_path / "cache/tensorrt")
    built = build(library, half, options)
    assert layer_of(built, "conv", "correlation").inputs == ("FP16",)
    assert [each.datatype for each in (*built.inputs, *built.outputs)] == ["FP32", "FP32"]
    with pytest.raises(LoadError, match="in the types that it has; give a file of BF16"):
        build(library, source, BuildOptions(dtype="bf16"))


def test_fp32_is_no_tf32_and_less_memory_is_less_to_work_in(
    library: Library, tmp_path: Path
) -> None:
    source = network(tmp_path / "net.onnx")
    options = tensorrt_store.granted(
        BuildOptions(), EngineOptions(dtype="fp32", memory_efficient=True)
    )
    assert options.workspace == tensorrt_store.SMALL_WORKSPACE
    flag = library.api.BuilderFlag.TF32
    assert _Builder(library, source, BuildOptions()).config.get_flag(flag)
    made = _Builder(library, source, options)
    assert not made.config.get_flag(flag)
    pool = library.api.MemoryPoolType.WORKSPACE
    assert made.config.get_memory_pool_limit(pool) == tensorrt_store.SMALL_WORKSPACE << 20
    assert layer_of(made.build(), "conv", "correlation").inputs == ("FP32",)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"z": ((1, 3, 16, 16),) * 3}, "names 'z'; inputs are 'x'"),
        ({"x": ((1, 3, 16),) * 3}, r"has \[1, 3, 16\] for input 'x', whose shape is"),
        ({"x": ((1, 4, 16, 16),) * 3}, r"has \[1, 4, 16, 16\] for input 'x'"),
        (
            {"x": ((4, 3, 16, 16), (2, 3, 16, 16), (8, 3, 16, 16))},
            "must be its smallest, usual and largest",
        ),
    ],
)
def test_shapes_that_do_not_fit_the_file(
    library: Library, tmp_path: Path, shapes: dict[str, tuple[tuple[int, ...], ...]], said: str
) -> None:
    options = msgspec.convert({"shapes": shapes}, BuildOptions)
    with pytest.raises(LoadError, match=said):
        build(library, network(tmp_path / "net.onnx"), options)


def test_a_plan_is_built_once_and_known_again(
    library: Library,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))
    source = network(tmp_path / "net.onnx")
    spec = ModelSpec(
        "net", "tensorrt", source, batch=BatchPolicy(max_batch_size=16, preferred_sizes=(4, 8))
    )
    options = tensorrt_store.options_of(spec)
    assert options.batches == (1, 8, 16)
    with caplog.at_level(logging.INFO, logger="ds_engines"):
        plan = tensorrt_store.built(
            library, source, options, "A, compute capability 1.0", tensorrt_store.steps("model net")
        )
    told = re.findall(r"model net: (\d+) % of its plan are built", caplog.text)
    assert 2 < len(told) == len(set(told)) <= 10
    written = plan.stat().st_mtime_ns
    assert tensorrt_store.is_plan(plan)
    assert plan.is_relative_to(tmp_path / "cache/tensorrt")
    again = tensorrt_store.built(library, source, options, gpu="A, compute capability 1.0")
    assert (again, again.stat().st_mtime_ns) == (plan, written)
    others = [
        tensorrt_store.built(library, source, options, gpu="B, compute capability 2.0"),
        tensorrt_store.built(
            library, source, msgspec.structs.replace(options, level=1), "A, compute capability 1.0"
        ),
        tensorrt_store.built(
            library, network(tmp_path / "net.onnx", half=True), options, "A, compute capability 1.0"
        ),
    ]
    assert len({plan, *others}) == 4
    known = tensorrt_store.facts(plan)
    assert known is not None
    assert (known.library, known.inputs[0].name) == (str(library), "x")
    assert tensorrt_store.misfit(known, library, "A, compute capability 1.0") == ""
    assert "it was built for A, compute capability 1.0, and this is B" in tensorrt_store.misfit(
        known, library, "B, compute capability 2.0"
    )
    older = msgspec.structs.replace(known, library="tensorrt_rtx 1.0.0")
    assert "it was built by tensorrt_rtx 1.0.0" in tensorrt_store.misfit(older, library, known.gpu)
    lasting = msgspec.structs.replace(older, options=BuildOptions(compatible=True))
    assert tensorrt_store.misfit(lasting, library, known.gpu) == ""


def test_a_library_that_is_not_there_is_named() -> None:
    with pytest.raises(LoadError, match="tensorrt is not installed: install NVIDIA's TensorRT"):
        tensorrt_library.require("tensorrt")
