"""What all methods that train have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from digits import Net, accuracy, apply, arrays, as_model, trained, training

from ds_engines.base import Array
from ds_quantize.errors import DataError, MethodError
from ds_quantize.forms import OnnxModel

Rows = dict[str, Array]


def few(**changed: Array) -> Rows:
    """200 rows, some arrays replaced."""
    return {name: array[:200] for name, array in training().items()} | changed


@pytest.mark.slow
def test_training_helps_and_leaves_the_given_module_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = as_model(Net(8))
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    made, measured = apply("finetune", model, tmp_path, epochs=6, learning_rate=5e-3)
    after = measured["validation_after"]
    assert measured["validation_before"]["accuracy"] < 0.4
    assert after["accuracy"] > 0.85
    assert after["rows"] == 130
    assert accuracy(made, tmp_path) > 0.85
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    model = as_model(Net(4))
    found = []
    for _ in range(2):
        torch.rand(1)
        made, _ = apply("finetune", model, tmp_path, rows=few(), epochs=1)
        found.append(made.module.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    """A learning rate that destroys leaves the model as good as it was."""
    _, measured = apply("finetune", trained(), tmp_path, rows=few(), epochs=2, learning_rate=10.0)
    assert (
        measured["validation_after"]["accuracy"] >= measured["validation_before"]["accuracy"] > 0.9
    )


def test_without_labels_the_original_is_what_to_agree_with(tmp_path: Path) -> None:
    rows = {"image": training()["image"]}
    torch.manual_seed(1)
    student = as_model(Net(16))
    _, measured = apply(
        "finetune", student, tmp_path, original=trained(), rows=rows, epochs=5, learning_rate=5e-3
    )
    assert "accuracy" not in measured["validation_after"]
    assert measured["validation_after"]["loss"] < measured["validation_before"]["loss"] / 2


def test_a_loss_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch.nn.functional import nll_loss\n"
        "def loss(outputs, labels):\n"
        "    return nll_loss(outputs.log_softmax(1), labels)\n"
        "def many(outputs, labels):\n"
        "    return outputs\n"
    )
    settings = {"rows": few(), "epochs": 1}
    _, mine = apply("finetune", trained(), tmp_path, loss=f"{file}:loss", **settings)
    _, usual = apply("finetune", trained(), tmp_path, loss="cross-entropy", **settings)
    assert mine["validation_after"]["loss"] == pytest.approx(usual["validation_after"]["loss"])
    with pytest.raises(MethodError, match="many must give a tensor of one number"):
        apply("finetune", trained(), tmp_path, loss=f"{file}:many", **settings)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (few(image=np.full((200, 1, 8, 8), np.nan, np.float32)), "'image' has values that are not"),
        ({"picture": arrays()[0][:200], "labels": arrays()[1][:200]}, "has no input 'image'"),
        (few(labels=np.full(200, 10)), r"labels, of shape \[\d+\], do not fit the first output"),
        ({name: array[:4] for name, array in training().items()}, "4 rows, which is too few"),
    ],
)
def test_data_that_do_not_fit(rows: Rows, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        apply("finetune", as_model(Net(4)), tmp_path, rows=rows, epochs=1)


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="finetune works on a PyTorch module, and this is onnx"):
        apply("finetune", OnnxModel(tmp_path / "x.onnx"), tmp_path)
    with pytest.raises(MethodError, match="no loss is called 'hinge'; there are: auto, agree"):
        apply("finetune", as_model(Net(4)), tmp_path, rows=few(), loss="hinge")


def test_norms_are_folded_and_nothing_changes(tmp_path: Path) -> None:
    model = trained()
    made, measured = apply("fuse", model, tmp_path)
    assert measured["fused"] == ["stem", "block.first", "block.second"]
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in made.module.modules())
    assert isinstance(made.module, Net)
    images = torch.tensor(arrays()[0][:50])
    with torch.no_grad():
        torch.testing.assert_close(made.module(images), model.module(images), rtol=1e-4, atol=1e-4)
