"""Rows of data as tensors, in memory: what is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ds_engines.base import Array
from ds_quantize.data import Batch, Data
from ds_quantize.errors import DataError
from ds_quantize.forms import TorchModel
from ds_quantize.torch_methods.modules import Inputs, tensor

READ = 256
"""Rows that are read at a time."""


@dataclass(frozen=True)
class Rows:
    """`inputs` in the order of `forward`, with their rows along `axes`; a label for each row."""

    inputs: Inputs
    axes: tuple[int, ...]
    labels: torch.Tensor | None
    count: int

    def take(self, indices: torch.Tensor) -> Rows:
        """The rows of these indices, in their order."""
        inputs = tuple(
            value.index_select(axis, indices)
            for value, axis in zip(self.inputs, self.axes, strict=True)
        )
        labels = None if self.labels is None else self.labels[indices]
        return Rows(inputs, self.axes, labels, len(indices))

    def batches(self, size: int, order: torch.Tensor | None = None) -> Iterator[Rows]:
        """All rows, `size` at a time."""
        indices = torch.arange(self.count) if order is None else order
        for part in indices.split(size):
            yield self.take(part)

    def split(self, share: float, seed: int) -> tuple[Rows, Rows]:
        """The rows without a random `share` of them, and that share."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        apart = round(self.count * share)
        return self.take(order[apart:]), self.take(order[:apart])


def batch_axis(model: TorchModel, name: str) -> int:
    """The axis of the input's rows: the one called batch, else the first that is dynamic."""
    axes = model.axes.get(name, {})
    named = (axis for axis, called in axes.items() if called.partition("<=")[0].strip() == "batch")
    return next(named, min(axes, default=0))


def read(model: TorchModel, data: Data, batch: int) -> Rows:
    """All rows of the data. Raises DataError where they do not fit the module's inputs."""
    batches = list(data.batches(READ))
    axes = tuple(batch_axis(model, name) for name in model.example)
    inputs = tuple(
        tensor(_joined(model, data, batches, name, axis))
        for name, axis in zip(model.example, axes, strict=True)
    )
    count = inputs[0].shape[axes[0]] if inputs else 0
    if count < 2 * batch and count < 16:
        raise DataError(f"{data.source} has {count} rows, which is too few to train on")
    return Rows(inputs, axes, _labels(batches), count)


def _joined(model: TorchModel, data: Data, batches: list[Batch], name: str, axis: int) -> Array:
    missing = next((batch for batch in batches if name not in batch.inputs), None)
    if missing is not None:
        raise DataError(f"{data.source} has no input {name!r}; it has: {', '.join(missing.inputs)}")
    like = model.example[name]
    try:
        joined = np.concatenate([batch.inputs[name] for batch in batches], axis)
    except ValueError as error:
        raise DataError(
            f"{data.source}: rows of input {name!r} differ in shape, and training joins them: "
            f"{error}"
        ) from error
    if np.issubdtype(joined.dtype, np.floating) and not np.isfinite(joined).all():
        raise DataError(f"{data.source}: input {name!r} has values that are not finite")
    return joined.astype(like.dtype, copy=False)


def _labels(batches: list[Batch]) -> torch.Tensor | None:
    labels = [batch.labels for batch in batches if batch.labels is not None]
    if len(labels) != len(batches):
        return None
    joined = np.concatenate(labels)
    whole = np.issubdtype(joined.dtype, np.integer)
    return torch.from_numpy(joined.astype(np.int64 if whole else np.float32))
