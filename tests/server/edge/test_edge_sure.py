"""How sure a classifier is, and rows that go their own way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds_engines.spec import ModelSpec, TensorSpec
from ds_serve.edge import rows
from ds_serve.edge.sure import confidence, judged_output


@pytest.mark.parametrize("kind", ["", "probabilities"])
def test_probabilities_are_taken_as_they_are(kind: str) -> None:
    assert confidence(np.array([[0.7, 0.3], [0.5, 0.5]]), kind).tolist() == [0.7, 0.5]


def test_logits_become_probabilities() -> None:
    given = np.array([[2.0, 0.0], [-1e4, 1e4]], np.float32)
    assert confidence(given) == pytest.approx([1 / (1 + np.exp(-2)), 1])
    assert confidence(np.array([[1.0, 0.0]]), "logits") == pytest.approx([1 / (1 + np.exp(-1))])


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_number_a_row_is_the_confidence_itself(shape: tuple[int, ...]) -> None:
    assert confidence(np.array([0.1, 5.0, 0.9]).reshape(shape)).tolist() == [0.1, 5.0, 0.9]


def test_of_several_verdicts_the_least_sure_counts() -> None:
    given = np.array([[[0.9, 0.1], [0.6, 0.4]]])
    assert confidence(given).tolist() == [0.6]


def test_what_is_not_a_number_is_not_sure() -> None:
    assert not confidence(np.array([[np.nan, 1.0]]))[0] >= 0.1
    assert confidence(np.zeros((0, 4))).shape == (0,)


def spec(*outputs: tuple[str, str]) -> ModelSpec:
    return ModelSpec(
        "m", "x", Path(), outputs=tuple(TensorSpec(name, kind, (-1,)) for name, kind in outputs)
    )


def test_the_output_that_is_judged() -> None:
    assert judged_output(spec(("label", "INT64"), ("p", "FP32")), "") == "p"
    assert judged_output(spec(("p", "FP32"), ("q", "FP16")), "q") == "q"
    with pytest.raises(ValueError, match="with numbers there are: p, q"):
        judged_output(spec(("p", "FP32"), ("q", "FP16")), "")
    with pytest.raises(ValueError, match="is no such output; the outputs are: p"):
        judged_output(spec(("p", "FP32")), "z")
    with pytest.raises(ValueError, match="is INT64"):
        judged_output(spec(("p", "INT64")), "p")


def test_rows_are_taken_and_put_back() -> None:
    numbers = rows.tensor("y", "FP32", np.arange(6, dtype=np.float32).reshape(3, 2))
    words = rows.tensor("w", "BYTES", np.array([b"a", b"bb", b"c"], dtype=object))
    chosen = np.array([0, 2])
    assert rows.array(rows.taken(words, chosen)).tolist() == [b"a", b"c"]
    theirs = [
        rows.tensor("w", "BYTES", np.array([b"X", b"YYY"], dtype=object)),
        rows.tensor("y", "FP32", np.full((2, 2), 9, np.float32)),
    ]
    made = rows.put([numbers, words], theirs, chosen, whole=False)
    assert made is not None
    assert rows.array(made[0]).tolist() == [[9, 9], [2, 3], [9, 9]]
    assert rows.array(made[1]).tolist() == [b"X", b"bb", b"YYY"]


@pytest.mark.parametrize(
    "other",
    [
        rows.tensor("z", "FP32", np.zeros((1, 2), np.float32)),
        rows.tensor("y", "FP64", np.zeros((1, 2))),
        rows.tensor("y", "FP32", np.zeros((1, 3), np.float32)),
        rows.tensor("y", "FP32", np.zeros((2, 2), np.float32)),
    ],
    ids=["name", "datatype", "shape", "rows"],
)
def test_outputs_that_do_not_fit_are_not_put_together(other: rows.Tensor) -> None:
    own = rows.tensor("y", "FP32", np.zeros((3, 2), np.float32))
    assert rows.put([own], [other], np.array([1]), whole=False) is None
