"""Handwritten digits, and small networks that are trained on them in seconds."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from ds_engines.base import Array, EngineOptions, Tensors, load
from ds_engines.spec import ModelSpec
from ds_quantize.context import Context
from ds_quantize.data import Data
from ds_quantize.forms import Measured, Model, TorchModel
from ds_quantize.loaders.rows import RowData, split
from ds_quantize.methods import METHODS
from ds_quantize.progress import Silent
from ds_quantize.torch_export import described, to_onnx

TRAINING_ROWS = 1297

# Spinning threads of PyTorch would wait for each other on a busy machine.
torch.set_num_threads(1)


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.norm1(self.first(x)))
        return torch.relu(x + self.norm2(self.second(inner)))


class Net(nn.Module):
    """A classifier of digits; `image` is [rows, 1, 8, 8], the output [rows, 10]."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.block = Block(channels)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.block(torch.relu(self.norm(self.stem(image)))))
        x = torch.relu(self.last(x)).mean((2, 3))
        return self.head(self.dropout(x))


class Dense(nn.Module):
    """The same with linear layers alone."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.first = nn.Linear(64, width)
        self.second = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(image.flatten(1)))
        return self.head(torch.relu(self.second(x)))


@cache
def arrays() -> tuple[Array, Array]:
    """All images, FP32 [1797, 1, 8, 8] from 0 to 1, and their labels, in a random order."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = (found.images / 16).astype(np.float32)[:, None]
    return images[order], found.target[order]


def training() -> dict[str, Array]:
    """What models are trained and calibrated on."""
    images, labels = arrays()
    return {"image": images[:TRAINING_ROWS], "labels": labels[:TRAINING_ROWS]}


def held_out() -> dict[str, Array]:
    """The 500 rows that no model has seen."""
    images, labels = arrays()
    return {"image": images[TRAINING_ROWS:], "labels": labels[TRAINING_ROWS:]}


def data(rows: dict[str, Array]) -> Data:
    """Arrays as the pipeline reads them."""
    inputs = {name: array for name, array in rows.items() if name != "labels"}
    return RowData("digits", lambda: split(inputs, rows.get("labels"), ""))


def as_model(module: nn.Module) -> TorchModel:
    """A module that takes digits."""
    module.eval()
    return described(module, {"image": arrays()[0][:4]}, ["logits"])


def context(folder: Path, original: Model, rows: dict[str, Array] | None = None) -> Context:
    """For a handler; the training rows are its calibration data."""
    folder.mkdir(parents=True, exist_ok=True)
    given = data(training() if rows is None else rows)
    return Context(folder, Silent(), original, calibration=given, threads=1)


def apply(
    name: str,
    model: Model,
    folder: Path,
    *,
    original: Model | None = None,
    rows: dict[str, Array] | None = None,
    **settings: Any,
) -> tuple[Any, Measured]:
    """What a method makes of a model, and what it has measured."""
    method = METHODS[name](**settings)
    given = context(folder, model if original is None else original, rows)
    return method.load()(model, method, given), given.measured


@cache
def _trained(kind: type[nn.Module], size: int, epochs: int) -> TorchModel:
    torch.manual_seed(0)
    method = METHODS["finetune"](epochs=epochs, learning_rate=5e-3, validation=0.0)
    model = as_model(kind(size))
    made: TorchModel = method.load()(model, method, context(Path(), model))  # type: ignore[assignment]
    return made


def trained(kind: type[nn.Module] = Net, size: int = 16, epochs: int = 15) -> TorchModel:
    """A trained network; the same one for all tests of a process."""
    return dataclasses.replace(_trained(kind, size, epochs))


def answers(path: Path, images: Array) -> Tensors:
    """The outputs of an ONNX file in the engine that the server uses."""
    engine = load(
        ModelSpec(name="m", engine="onnxruntime", artifact=path), EngineOptions(threads=1)
    )
    found = engine.run({"image": images})
    engine.close()
    return found


def accuracy(model: Model, folder: Path) -> float:
    """On the rows that no model has seen, of the built engine."""
    rows = held_out()
    path = to_onnx(model, folder / "x.onnx").path if isinstance(model, TorchModel) else model.path
    found = answers(path, rows["image"])["logits"].argmax(1)
    return float((found == rows["labels"]).mean())
