"""A candidate against its baseline: faults, layers, speed, size, memory."""

from __future__ import annotations

from pathlib import Path

import comparisons
import msgspec
import numpy as np
import onnx
import onnx_models
import pytest

from ds_engines.errors import LoadError
from ds_quantize import data, evaluate
from ds_quantize.errors import DataError, QuantizeError, SourceError
from ds_quantize.evaluate import Evaluation
from ds_quantize.forms import FolderModel, OnnxModel


@pytest.fixture
def original(tmp_path: Path) -> OnnxModel:
    return comparisons.classifier(tmp_path / "m.onnx")


def compared(original, candidate, folder, source="", metric="", options=comparisons.QUICK):
    loaded = data.load(source or comparisons.saved(folder / "d.npz"))
    return evaluate.compare(
        original, candidate, loaded, metric, comparisons.context(folder), options
    )


def test_model_against_itself(tmp_path, original):
    found = compared(original, original, tmp_path)
    assert found.rows == 200
    assert found.faults == ()
    assert (found.quality.drop, found.agreement.value, found.size) == (0, 1, 1)
    assert found.cosine.value == pytest.approx(1)
    assert [output.largest for output in found.outputs] == [0]
    assert [(layer.name, layer.error) for layer in found.layers] == [("first", 0), ("second", 0)]


def test_survives_json(tmp_path, original):
    found = compared(original, comparisons.broken(tmp_path / "c.onnx"), tmp_path)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation) == found


def test_timings_of_each_batch_size(tmp_path, original):
    found = compared(original, original, tmp_path)
    for side in (found.baseline, found.candidate):
        assert [timing.batch for timing in side.timings] == [1, 8]
        for timing in side.timings:
            assert 0 < timing.lowest_ms <= timing.latency_ms <= timing.highest_ms
            assert timing.rows_per_s == pytest.approx(1000 * timing.batch / timing.latency_ms)
    assert list(found.speedups) == [1, 8]
    assert found.latency_ms == found.candidate.timings[0].latency_ms


def test_collapsed_output_is_a_fault(tmp_path, original):
    zeros = np.zeros((comparisons.FEATURES, comparisons.CLASSES), np.float32)
    found = compared(original, comparisons.classifier(tmp_path / "c.onnx", zeros), tmp_path)
    assert found.faults[0] == "output 'logits' has collapsed: it is the same for all 200 rows"
    assert "'second' (MatMul)" in found.faults[1]


def test_one_answer_for_all_rows_is_a_fault(tmp_path, original):
    weight = np.abs(comparisons.weights()) * 1e-3
    weight[:, 2] += 5
    features, labels = comparisons.rows(200)
    np.savez(tmp_path / "p.npz", x=np.abs(features), labels=labels)
    candidate = comparisons.classifier(tmp_path / "c.onnx", weight)
    found = compared(original, candidate, tmp_path, str(tmp_path / "p.npz"))
    assert found.faults[0].startswith("the output has collapsed: class 2 is the answer to all")


def test_output_that_is_not_finite_is_a_fault(tmp_path, original):
    found = compared(original, comparisons.broken(tmp_path / "c.onnx"), tmp_path)
    row = int((comparisons.rows(200)[0][:, 0] < 0).argmax())
    assert found.faults[0] == (
        f"output 'logits' is NaN or infinite at row {row}, where the original's is finite"
    )


def test_original_that_is_not_finite_itself_is_no_fault_of_the_candidate(tmp_path):
    broken = comparisons.broken(tmp_path / "c.onnx")
    assert compared(broken, broken, tmp_path).faults == ()


def test_layer_where_the_error_comes_in_is_ranked_first(tmp_path, original):
    candidate = comparisons.classifier(tmp_path / "c.onnx", comparisons.weights(0.2))
    first, second = compared(original, candidate, tmp_path).layers
    assert (first.name, first.op, first.error, first.rank) == ("first", "MatMul", 0, 2)
    assert second.rank == 1
    features = comparisons.rows(4)[0]
    apart = features @ (comparisons.weights(0.2) - comparisons.weights())
    error = np.linalg.norm(apart) / np.linalg.norm(features @ comparisons.weights())
    assert second.error == pytest.approx(error, rel=1e-4)


def test_error_that_came_in_before_is_not_a_layers_own(tmp_path, original):
    proto = onnx.load(original.path)
    eye = next(item for item in proto.graph.initializer if item.name == "eye")
    noisy = np.eye(16, dtype=np.float32) + 0.1 * np.random.default_rng(2).standard_normal((16, 16))
    eye.CopyFrom(onnx.numpy_helper.from_array(noisy.astype(np.float32), "eye"))
    onnx.save(proto, tmp_path / "c.onnx")
    first, second = compared(original, OnnxModel(tmp_path / "c.onnx"), tmp_path).layers
    assert second.error > 0.1
    assert first.own == first.error > 2 * second.own
    assert first.rank == 1


def test_candidate_whose_rows_depend_on_one_another(tmp_path):
    original = OnnxModel(onnx_models.unnamed_axes(tmp_path / "m.onnx"))
    proto = onnx.load(original.path)
    shape = proto.graph.input[0].type.tensor_type.shape
    nodes = [
        onnx.helper.make_node("Neg", ["x"], ["negative"]),
        onnx.helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        onnx.helper.make_node("Sub", ["negative", "mean"], ["y"]),
    ]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert shape.dim[1].dim_value == 64
    onnx.save(proto, tmp_path / "c.onnx")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).standard_normal((30, 64)))
    candidate = OnnxModel(tmp_path / "c.onnx")
    found = compared(original, candidate, tmp_path, str(tmp_path / "d.npz"))
    assert any("the server will not batch them" in note for note in found.notes)
    assert list(found.speedups) == [1]


def test_model_of_a_fixed_batch(tmp_path):
    model = comparisons.classifier(tmp_path / "m.onnx", batch=4)
    found = compared(model, model, tmp_path)
    assert found.quality.baseline.value == 0.9
    assert list(found.speedups) == [4]


def test_weights_beside_the_file_count(tmp_path, original):
    proto = onnx.load(original.path)
    folder = tmp_path / "apart"
    folder.mkdir()
    onnx.save(
        proto, folder / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    found = compared(original, OnnxModel(folder / "m.onnx"), tmp_path)
    files = [folder / "m.onnx", folder / "weights"]
    assert found.candidate.size_bytes == sum(file.stat().st_size for file in files)
    assert found.quality.drop == 0


def test_models_that_are_not_the_same(tmp_path, original):
    other = OnnxModel(onnx_models.mlp(tmp_path / "o.onnx"))
    with pytest.raises(SourceError, match=r"o\.onnx has outputs y, but m\.onnx has logits"):
        compared(original, other, tmp_path)


def test_form_without_an_engine(tmp_path, original):
    with pytest.raises(QuantizeError, match=r"a model of form 'papyrus' cannot be evaluated"):
        compared(original, FolderModel(tmp_path, form="papyrus"), tmp_path)


def test_file_that_no_engine_loads(tmp_path, original):
    (tmp_path / "c.onnx").write_bytes(b"nothing")
    with pytest.raises(LoadError, match=r"c\.onnx is not a model that ONNX Runtime can load"):
        compared(original, OnnxModel(tmp_path / "c.onnx"), tmp_path)


def test_bad_rows_are_told_before_anything_runs(tmp_path, original):
    features, labels = comparisons.rows(40)
    features[17, 3] = np.inf
    np.savez(tmp_path / "d.npz", x=features, labels=labels)
    with pytest.raises(DataError, match=r"d\.npz: row 17: input 'x' holds inf at \[3\]"):
        compared(original, original, tmp_path, str(tmp_path / "d.npz"))


@pytest.mark.slow
def test_memory_of_a_larger_model_is_larger(tmp_path, original):
    weight = np.ones((4000, 4000), np.float32)
    large = onnx_models.save(
        tmp_path / "l.onnx",
        [
            onnx.helper.make_node("MatMul", ["x", "wide"], ["h"]),
            onnx.helper.make_node("MatMul", ["h", "big"], ["i"]),
            onnx.helper.make_node("MatMul", ["i", "narrow"], ["logits"]),
        ],
        [onnx_models._value("x", onnx_models.FLOAT, ["batch", 16])],
        [onnx_models._value("logits", onnx_models.FLOAT, ["batch", 4])],
        [
            onnx_models._constant("wide", weight[:16]),
            onnx_models._constant("big", weight),
            onnx_models._constant("narrow", weight[:, :4]),
        ],
    )
    options = msgspec.structs.replace(comparisons.QUICK, memory=True, layer_rows=0)
    found = compared(original, OnnxModel(large), tmp_path, options=options)
    assert found.candidate.memory_bytes > 64_000_000 + found.baseline.memory_bytes
