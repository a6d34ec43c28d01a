"""Small models taught by large ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from digits import Net, accuracy, apply, trained

from ds_quantize.errors import MethodError
from ds_quantize.methods.torch import DistillFeatures

STUDENTS = """
import torch
from digits import Dense, Net

def small():
    torch.manual_seed(0)
    return Net(6)

def dense():
    return Dense(32)

def other():
    return torch.nn.Linear(8, 8)

def number():
    return 3
"""


@pytest.fixture
def students(tmp_path: Path) -> Path:
    (tmp_path / "students.py").write_text(STUDENTS)
    return tmp_path / "students.py"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["distill-logits", "distill-features"])
def test_a_student_learns_from_its_teacher(method: str, students: Path, tmp_path: Path) -> None:
    teacher = trained()
    made, measured = apply(
        method, teacher, tmp_path, student=f"{students}:small", epochs=15, learning_rate=8e-3
    )
    sizes = measured["parameters"]
    assert sizes["student"] < 0.2 * sizes["teacher"]
    assert measured["validation_before"]["accuracy"] < 0.5
    assert accuracy(made, tmp_path) > 0.93
    if method == "distill-features":
        assert set(measured["layers"]) == {"stem", "block.first", "block.second", "last"}


@pytest.mark.slow
def test_the_model_itself_is_the_student_of_the_original(tmp_path: Path) -> None:
    student = trained(Net, 6, 4)
    made, measured = apply(
        "distill-logits", student, tmp_path, original=trained(), epochs=6, learning_rate=5e-3
    )
    assert made.module.stem.weight.shape[0] == 6
    before, after = measured["validation_before"], measured["validation_after"]
    assert after["accuracy"] > before["accuracy"]


def test_the_student_file_counts_as_a_setting(students: Path) -> None:
    assert DistillFeatures(student=f"{students}:small").files == (str(students),)
    assert DistillFeatures(loss=f"{students}:loss").files == (str(students),)
    assert DistillFeatures().files == ()


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ("number", "gave a int, not a module"),
        ("nobody", "has no function 'nobody'"),
        ("other", r"gives outputs of shapes \[\[4, 1, 8, 8\]\], and the original \[\[4, 10\]\]"),
    ],
)
def test_students_that_do_not_fit(student: str, said: str, students: Path, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=said):
        apply("distill-logits", trained(Net, 4, 1), tmp_path, student=f"{students}:{student}")


def test_layers_that_cannot_be_compared(students: Path, tmp_path: Path) -> None:
    teacher = trained(Net, 4, 1)
    with pytest.raises(MethodError, match="have no layers of the same name; say which belong"):
        apply("distill-features", teacher, tmp_path, student=f"{students}:dense")
    with pytest.raises(MethodError, match=r"'first' and 'last' give shapes .* only may differ in"):
        apply(
            "distill-features",
            teacher,
            tmp_path,
            student=f"{students}:dense",
            layers={"first": "last"},
        )
    with pytest.raises(MethodError, match="Net has no layer 'conv9'; it has: stem, norm, block,"):
        apply("distill-features", teacher, tmp_path, layers={"stem": "conv9"})
