"""What of TensorRT's engine needs neither it nor a GPU: shapes, memory, layers, parameters."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from ds_engines import manifest, tensorrt_store
from ds_engines.cuda.ledger import MB, DoesNotFit, Ledger
from ds_engines.errors import InvalidRequest, LoadError
from ds_engines.spec import BatchPolicy, ModelSpec
from ds_engines.tensorrt_layers import told
from ds_engines.tensorrt_shapes import Port, cut, lengths, padded, parsed, ranged, rows

PICTURE = ranged("x", "FP32", ((2, 3, 32, 8), (8, 3, 64, 8), (16, 3, 128, 8)))
SCALE = ranged("s", "FP16", ((3,), (3,), (3,)))


def test_an_input_varies_where_its_profile_lets_it() -> None:
    assert PICTURE.shape == (-1, 3, -1, 8)
    assert PICTURE.size == 16 * 3 * 128 * 8 * 4
    assert (SCALE.shape, SCALE.size, SCALE.joint) == ((3,), 6, False)
    assert rows((SCALE, PICTURE)) == (2, 16)
    assert rows((SCALE,)) == (1, 0)
    assert lengths((PICTURE, SCALE)) == (64,)


@pytest.mark.parametrize(
    "shape", [(1, 3, 64, 8), (17, 3, 64, 8), (4, 3, 31, 8), (4, 3, 64, 9), (4, 3, 64)]
)
def test_shapes_out_of_the_profile_are_the_clients_mistake(shape: tuple[int, ...]) -> None:
    PICTURE.check((4, 3, 64, 8))
    with pytest.raises(InvalidRequest) as caught:
        PICTURE.check(shape)
    assert str(caught.value) == (
        f"input 'x' has the shape {list(shape)}; the plan was built for [2, 3, 32, 8] to "
        "[16, 3, 128, 8]"
    )


def test_too_small_a_batch_is_padded_and_its_answer_cut() -> None:
    batch = np.arange(6).reshape(3, 2)
    assert padded(batch, 5).tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    assert padded(batch, 3) is batch
    assert padded(batch[:0], 5).shape == (0, 2)
    answer = np.arange(10).reshape(5, 2)
    assert cut(answer, 0, (3, 5)).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert cut(answer.T, 1, (3, 5)).tolist() == [[0, 2, 4], [1, 3, 5]]
    assert cut(answer, 0, (5, 5)) is answer
    alone = np.zeros(7)
    assert cut(alone, None, (3, 5)) is alone


def test_the_three_shapes_of_a_parameter() -> None:
    assert parsed("1x16,8x64,8x128", "p") == ((1, 16), (8, 64), (8, 128))
    for text in ("", "1x16", "1x16,8x64", "1xa,1x2,1x3", "1,2,3,4"):
        with pytest.raises(LoadError, match=r"p is .*; it must be the smallest, usual and largest"):
            parsed(text, "p")


def test_a_model_that_does_not_fit_is_refused_with_the_numbers() -> None:
    ledger = Ledger("net", "cuda:0 (H100)", 3000 * MB, reserve=500 * MB)
    ledger.need("weights", 1500 * MB)
    ledger.need("work of 2 slots", 600 * MB)
    ledger.need("work of 2 slots", 400 * MB)
    ledger.check()
    assert ledger.needed == 2500 * MB
    ledger.need("inputs and outputs", MB)
    with pytest.raises(DoesNotFit) as caught:
        ledger.check()
    assert str(caught.value) == (
        "model 'net' does not fit on cuda:0 (H100): it needs 2,501 MB (weights 1,500 MB, work of 2 "
        "slots 1,000 MB, inputs and outputs 1 MB) beside a reserve of 500 MB, and 3,000 MB are "
        "free; lower max_batch_size or instance_group.count, or take another GPU by --device"
    )


LINE = (
    "Name: conv1_2, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [-1,4,16,16], "
    "Datatype: Int8, Format: (NHWC) }, { Name: r, Dimensions: [1], Datatype: Half, Format: f }], "
    "Constants: [ { Name: w, Dimensions: [8,4,3,3], Datatype: Int8, Format: (NHWC) }], "
    "Outputs: [ { Name: y, Dimensions: [-1,8,16,16], Datatype: Float, Format: (NHWC) }], "
    "TacticName: t, Metadata: [ONNX Layer: conv1][ONNX Layer: relu1]"
)


def test_layers_are_read_from_what_the_builder_says() -> None:
    (layer,) = told(f"Layers:\n{LINE}\nsomething else")
    assert (layer.name, layer.kind) == ("conv1_2", "correlation")
    assert (layer.inputs, layer.constants, layer.outputs) == (
        ("INT8", "FP16"),
        ("INT8",),
        ("FP32",),
    )
    assert layer.sources == ("conv1", "relu1")
    older = "Name: a, LayerType: Conv, Inputs: [ { Name: x, Format/Datatype: Row major Int8 }]"
    assert told(older)[0].inputs == ("INT8",)


def spec(**parameters: str) -> ModelSpec:
    named = {key.replace("__", "."): value for key, value in parameters.items()}
    return ModelSpec(
        "net", "tensorrt", Path("net.onnx"), batch=BatchPolicy(max_batch_size=4), parameters=named
    )


def test_parameters_say_what_a_plan_is_to_be() -> None:
    found = tensorrt_store.options_of(
        spec(
            tensorrt__level="2", tensorrt__sparse="true", tensorrt__shapes__x="1x8,2x8,4x16",
            batch_axis__x="0", other="x",
        )
    )  # fmt: skip
    assert (found.level, found.sparse, found.batches) == (2, True, (1, 4, 4))
    assert found.shapes == {"x": ((1, 8), (2, 8), (4, 16))}
    pairs = msgspec.structs.replace(spec(), batch=BatchPolicy(max_batch_size=2))
    assert tensorrt_store.options_of(pairs).batches == (1, 2, 3)
    unbatched = ModelSpec("net", "tensorrt", Path("net.onnx"))
    assert tensorrt_store.options_of(unbatched).batches == (1, 1, 1)


@pytest.mark.parametrize(
    "parameters", [{"tensorrt__speed": "9"}, {"tensorrt__level": "fast"}, {"tensorrt__dla": "x"}]
)
def test_a_parameter_that_there_is_not_is_named(parameters: dict[str, str]) -> None:
    with pytest.raises(LoadError, match=r"'tensorrt\.' is wrong: .*; there are shapes, level"):
        tensorrt_store.options_of(spec(**parameters))


def test_the_onnx_file_beside_a_plan(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    assert tensorrt_store.onnx_beside(plan) is None
    (tmp_path / "other.onnx").touch()
    assert tensorrt_store.onnx_beside(plan) == tmp_path / "other.onnx"
    (tmp_path / "third.onnx").touch()
    assert tensorrt_store.onnx_beside(plan) is None
    (tmp_path / "model.onnx").touch()
    assert tensorrt_store.onnx_beside(plan) == tmp_path / "model.onnx"


def test_a_recipes_manifest_says_what_a_plan_was_built_by(tmp_path: Path) -> None:
    assert tensorrt_store.facts(tmp_path / "model.plan") is None
    made = manifest.Manifest(
        created="2026-01-01T00:00:00Z", source=manifest.Source("net.onnx", "0"), recipe={},
        libraries={}, data=manifest.DataSets(), files={},
        measured={"plan": {"library": "tensorrt 10.1", "gpu": "A100", "bytes": 7}},
        gate=manifest.Judgement(True),
    )  # fmt: skip
    manifest.write(tmp_path, made)
    known = tensorrt_store.facts(tmp_path / "model.plan")
    assert known is not None
    assert (known.library, known.gpu) == ("tensorrt 10.1", "A100")
    (tmp_path / "model.plan.json").write_text("{}")
    with pytest.raises(LoadError, match=r"what is known of .*model\.plan cannot be read"):
        tensorrt_store.facts(tmp_path / "model.plan")


def test_a_port_counts_bytes_by_its_type() -> None:
    sizes = {"BF16": 2, "FP16": 2, "INT64": 8, "BOOL": 1, "INT8": 1}
    assert {name: Port("p", name, (2, 3)).nbytes((2, 3)) // 6 for name in sizes} == sizes
