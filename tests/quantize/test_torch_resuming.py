"""Training that is interrupted goes on from its last epoch, to the result that it would have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from digits import Net, as_model, context, trained, training

from ds_quantize.context import Item
from ds_quantize.forms import Model, TorchModel
from ds_quantize.methods import METHODS
from ds_quantize.progress import Silent
from ds_quantize.torch_methods import checkpoints

FACTORY = """
from digits import Net

def make():
    import torch
    torch.manual_seed(3)
    return Net(4)
"""


class Stopping(Silent):
    """Is interrupted when an epoch begins after so many, and counts them."""

    def __init__(self, after: int = 100) -> None:
        self.after = after
        self.epochs = 0

    def track(
        self, items: Iterable[Item], description: str, total: int | None = None
    ) -> Iterator[Item]:
        if ": epoch " in description:
            if self.epochs == self.after:
                raise KeyboardInterrupt
            self.epochs += 1
        return iter(items)


def run(model: TorchModel, folder: Path, progress: Stopping, name: str, **settings: Any) -> Model:
    rows = {key: array[:160] for key, array in training().items()}
    given = context(folder / "stage", model, rows)
    given = dataclasses.replace(given, progress=progress, resume=folder / "resume")
    method = METHODS[name](**settings)
    return method.load()(model, method, given)


def content(model: Model) -> Any:
    if isinstance(model, TorchModel):
        return {name: value.tolist() for name, value in model.module.state_dict().items()}
    return model.path.read_bytes()


CASES: list[tuple[str, dict[str, Any], int]] = [
    ("finetune", {"epochs": 3}, 3),
    ("qat-int8", {"epochs": 3}, 3),
    ("prune-channels", {"epochs": 2, "steps": 2}, 4),
    ("prune-magnitude", {"epochs": 2, "steps": 2}, 4),
    (
        "distill-features",
        {"epochs": 3, "student": "student.py:make", "layers": {"last": "last"}},
        3,
    ),
]
"""Method, its settings, and how many epochs these make."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings", "epochs"), CASES, ids=[c[0] for c in CASES])
def test_it_goes_on(
    name: str,
    settings: dict[str, Any],
    epochs: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    Path("student.py").write_text(FACTORY)
    model = trained(Net, 16)
    wanted = content(run(model, tmp_path / "whole", Stopping(), name, **settings))
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "twice", Stopping(epochs - 1), name, **settings)
    again = Stopping()
    found = content(run(model, tmp_path / "twice", again, name, **settings))
    assert found == wanted
    assert again.epochs == 1


def test_a_checkpoint_that_cannot_be_read_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    torch.manual_seed(0)
    model = as_model(Net(4))
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, Stopping(1), "finetune", epochs=2)
    (file,) = (tmp_path / "resume").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    again = Stopping()
    run(model, tmp_path, again, "finetune", epochs=2)
    assert again.epochs == 2
