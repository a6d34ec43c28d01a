"""Reading calibration and evaluation data, and laying them out for a model."""

from __future__ import annotations

from pathlib import Path

import comparisons
import numpy as np
import onnx_models
import pytest

from ds_quantize.data import Data, fit, load
from ds_quantize.errors import DataError
from ds_quantize.evaluate.engines import opened
from ds_quantize.forms import OnnxModel

ROWS = np.arange(12, dtype=np.float32).reshape(6, 2)


def spec_of(path: Path):
    engine = opened(OnnxModel(path), 1)
    engine.close()
    return engine.spec


def whole(data: Data, name: str) -> np.ndarray:
    return np.concatenate([batch.inputs[name] for batch in data.batches(4)])


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def script(path: Path, body: str) -> str:
    path.write_text(f"import numpy as np\nfrom ds_quantize.data import Batch\n{body}")
    return f"{path}:rows"


def test_npz_in_batches_with_labels(tmp_path):
    data = load(npz(tmp_path / "d.npz", x=ROWS, labels=np.arange(6)))
    batches = list(data.batches(4))
    assert (data.rows, data.labelled) == (6, True)
    assert [len(batch.inputs["x"]) for batch in batches] == [4, 2]
    np.testing.assert_array_equal(whole(data, "x"), ROWS)
    np.testing.assert_array_equal(np.concatenate([b.labels for b in batches]), np.arange(6))


def test_the_same_rows_have_the_same_digest_however_they_are_kept(tmp_path):
    one = load(npz(tmp_path / "d.npz", x=ROWS, labels=np.arange(6)))
    parts, mapped = tmp_path / "parts", tmp_path / "mapped"
    parts.mkdir()
    mapped.mkdir()
    npz(parts / "a.npz", x=ROWS[:4], labels=np.arange(4))
    npz(parts / "b.npz", x=ROWS[4:], labels=np.arange(4, 6))
    np.save(mapped / "x.npy", ROWS)
    np.save(mapped / "labels.npy", np.arange(6))
    function = script(
        tmp_path / "d.py",
        "def rows():\n"
        "    x = np.arange(12, dtype=np.float32).reshape(6, 2)\n"
        "    yield {'x': x[0]}, 0\n"
        "    yield Batch({'x': x[1:]}, np.arange(1, 6))\n",
    )
    digests = {load(str(source)).digest for source in (parts, mapped, function)}
    assert digests == {one.digest}
    other = npz(tmp_path / "o.npz", x=ROWS, labels=np.arange(6)[::-1])
    assert load(other).digest != one.digest


def test_text_files(tmp_path):
    plain = load(comparisons.lines(tmp_path / "t.txt", ["Äpfel", "", "two"]))
    (batch,) = plain.batches(8)
    assert batch.inputs["text"].tolist() == ["Äpfel".encode(), b"two"]
    objects = load(
        comparisons.lines(
            tmp_path / "t.jsonl",
            [
                '{"text": "one", "ids": [1, 2], "label": "a"}',
                '{"text": "two", "ids": [3, 4], "label": "b"}',
            ],
        )
    )
    (batch,) = objects.batches(8)
    assert batch.inputs["text"].tolist() == [b"one", b"two"]
    assert batch.inputs["ids"].tolist() == [[1, 2], [3, 4]]
    assert batch.labels is not None
    assert batch.labels.tolist() == ["a", "b"]


def test_batches_end_where_shapes_change(tmp_path):
    source = script(
        tmp_path / "d.py",
        "def rows():\n    for n in (3, 3, 5, 3):\n        yield {'x': np.zeros(n)}\n",
    )
    assert [batch.inputs["x"].shape for batch in load(source).batches(4)] == [
        (2, 3),
        (1, 5),
        (1, 3),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"1,2", "is not data that can be read"),
        ("d.npz", b"no archive", r"d\.npz cannot be read as \.npz"),
        ("d.txt", b"\n\n", "holds no rows"),
        ("d.txt", b"\xff\xfe", "is not UTF-8"),
        ("d.jsonl", b'{"x": 1}\n{"x":', "line 2 is not JSON"),
        ("d.jsonl", b"[1]\n", "line 1 is not an object"),
        ("d.jsonl", b'{"x": [[1], [1, 2]]}\n', "line 1: 'x' is a list whose rows differ"),
        ("d.jsonl", b'{"x": 1, "label": 1}\n{"x": 1}\n', "line 2: either all rows have labels"),
        ("d.py", b"", r"names no function; give .*d\.py:FUNCTION"),
    ],
)
def test_files_that_are_no_data(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(str(path))


def test_missing_file_and_mixed_folder(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*gone\.npz"):
        load(str(tmp_path / "gone.npz"))
    with pytest.raises(DataError, match=r"holds no \.npz and no \.npy file"):
        load(str(tmp_path))
    np.save(tmp_path / "x.npy", ROWS)
    npz(tmp_path / "y.npz", x=ROWS)
    with pytest.raises(DataError, match="it must be one kind"):
        load(str(tmp_path))


def test_arrays_of_different_lengths(tmp_path):
    with pytest.raises(DataError, match="'labels' has 5 rows, but 'x' has 6"):
        load(npz(tmp_path / "d.npz", x=ROWS, labels=np.arange(5)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def other():\n    pass\n", r"has no function 'rows'; it has: other"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def rows():\n    yield {'x': 1}\n    raise KeyError('k')\n", "fails at row 1: KeyError"),
        ("def rows():\n    yield [1, 2]\n", "yields a list as row 0"),
        ("def rows():\n    return []\n", "holds no rows"),
    ],
)
def test_functions_that_fail(tmp_path, body, message):
    with pytest.raises(DataError, match=message):
        load(script(tmp_path / "d.py", body))


def test_function_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_data.py").write_text("VALUE = 3.0\n")
    body = "import neighbour_of_data\ndef rows():\n    yield {'x': neighbour_of_data.VALUE}\n"
    (batch,) = load(script(tmp_path / "d.py", body)).batches(1)
    assert batch.inputs["x"].tolist() == [3.0]


# Laid out for a model.


def test_types_of_the_same_kind_are_converted(tmp_path):
    spec = spec_of(onnx_models.unnamed_axes(tmp_path / "m.onnx"))
    data = fit(load(npz(tmp_path / "d.npz", x=np.ones((3, 64)))), spec)
    assert whole(data, "x").dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.ones((3, 64))}, "has no 'x': its arrays are 'y', and the inputs of m.onnx"),
        ({"x": np.ones((3, 64)), "z": np.ones(3)}, "has 'z': its arrays are"),
        ({"x": np.ones((3, 63))}, r"row 0: input 'x' has shape \[63\] a row; m.onnx wants \[64\]"),
        ({"x": np.ones((3, 64), np.uint8)}, "holds uint8, but the model wants FP32"),
        ({"x": np.where(np.eye(3, 64), np.nan, 0)}, r"row 0: input 'x' holds nan at \[0\]"),
        ({"x": np.full((3, 64), np.inf)}, "holds inf"),
    ],
)
def test_data_that_a_model_does_not_take(tmp_path, arrays, message):
    spec = spec_of(onnx_models.unnamed_axes(tmp_path / "m.onnx"))
    with pytest.raises(DataError, match=message):
        fit(load(npz(tmp_path / "d.npz", **arrays)), spec)


def test_first_bad_row_of_many_files_is_named(tmp_path):
    spec = spec_of(onnx_models.unnamed_axes(tmp_path / "m.onnx"))
    folder = tmp_path / "data"
    folder.mkdir()
    good = np.zeros((4, 64), np.float32)
    bad = good.copy()
    bad[2, 7] = np.nan
    npz(folder / "a.npz", x=good)
    npz(folder / "b.npz", x=bad)
    with pytest.raises(DataError, match=r"b\.npz, row 2: input 'x' holds nan at \[7\]"):
        fit(load(str(folder)), spec)


def test_array_without_a_name_is_the_only_input(tmp_path):
    spec = spec_of(onnx_models.unnamed_axes(tmp_path / "m.onnx"))
    path = tmp_path / "d.npz"
    np.savez(path, np.ones((3, 64), np.float32))
    assert whole(fit(load(str(path)), spec), "x").shape == (3, 64)


def test_rows_go_along_the_models_batch_axes(tmp_path):
    spec = spec_of(onnx_models.recurrent(tmp_path / "m.onnx"))
    source = npz(
        tmp_path / "d.npz",
        x=np.ones((5, 4)),
        state=np.arange(40.0).reshape(5, 2, 4),
        scale=np.float32(2),
    )
    first, _ = fit(load(source), spec).batches(3)
    assert {name: array.shape for name, array in first.inputs.items()} == {
        "x": (3, 4),
        "state": (2, 3, 4),
        "scale": (),
    }
    np.testing.assert_array_equal(first.inputs["state"][:, 1], np.arange(8, 16).reshape(2, 4))


def test_model_of_a_fixed_batch_takes_as_many_rows_at_a_time(tmp_path):
    spec = spec_of(comparisons.classifier(tmp_path / "m.onnx", batch=2).path)
    data = load(npz(tmp_path / "d.npz", x=np.ones((6, 16), np.float32)))
    assert [b.inputs["x"].shape for b in fit(data, spec).batches(8)] == [(2, 16)] * 3
    odd = load(npz(tmp_path / "o.npz", x=np.ones((5, 16), np.float32)))
    with pytest.raises(DataError, match="takes 2 at a time"):
        fit(odd, spec)


def test_rows_that_are_a_whole_call(tmp_path):
    spec = spec_of(onnx_models.fixed(tmp_path / "m.onnx"))
    data = load(npz(tmp_path / "d.npz", x=np.arange(24, dtype=np.float32).reshape(2, 3, 4)))
    assert [b.inputs["x"].shape for b in fit(data, spec).batches(8)] == [(3, 4)] * 2


def test_texts_for_a_model_of_strings(tmp_path):
    spec = spec_of(onnx_models.identities(tmp_path / "m.onnx", ["BYTES"]))
    source = comparisons.lines(tmp_path / "d.jsonl", ['{"in_BYTES": ["a", "b"]}'])
    (batch,) = fit(load(source), spec).batches(4)
    assert batch.inputs["in_BYTES"].tolist() == [[b"a", b"b"]]
