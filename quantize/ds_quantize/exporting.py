"""Eager PyTorch against what it was exported to: outputs, latency, memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ds_engines.base import EngineOptions, Tensors
from ds_quantize.errors import SourceError
from ds_quantize.evaluate import engines, memory, speed
from ds_quantize.evaluate.results import Timing
from ds_quantize.forms import OnnxModel, TorchModel
from ds_quantize.torch_methods import memory as torch_memory
from ds_quantize.torch_methods.modules import copied, outputs
from ds_quantize.torch_methods.rows import batch_axis

BATCHES = (1, 8, 32)
TURNS = 5


@dataclass(frozen=True)
class Side:
    """One way to run the model. `errors`: by output, the largest absolute difference from eager
    and the largest value of eager; `memory_bytes`: the growth of a process that loads and runs it.
    """

    name: str
    size_bytes: int
    memory_bytes: int | None
    timings: tuple[Timing, ...]
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)


def compare(
    model: TorchModel, files: Sequence[Path], threads: int = 0, seconds: float = 1.0
) -> list[Side]:
    """The module in eager mode, then each of its files, ONNX or `.pt2`, in turns on this machine.

    `seconds`: of each timing. Raises SourceError where a file gives other shapes.
    """
    threads = engines.usable(threads)
    with _threads(threads):
        eager = copied(model)
        runners = [_Eager(eager), *(_opened(eager, path, threads) for path in files)]
        batches = [rows(model, batch) for batch in BATCHES]
        timings = [
            speed.timings(runners, [given] * len(runners), batch, seconds, TURNS)
            for batch, given in zip(BATCHES, batches, strict=True)
        ]
        found = [each.run(batches[1]) for each in runners]
    return [
        Side(
            name="eager" if at == 0 else files[at - 1].name,
            size_bytes=_size(model, None if at == 0 else files[at - 1]),
            memory_bytes=_memory(model, None if at == 0 else files[at - 1], threads),
            timings=tuple(own[at] for own in timings),
            errors=_errors(found[0], found[at]) if at else {},
        )
        for at in range(len(runners))
    ]


class _Eager:
    """The module as an engine."""

    def __init__(self, model: TorchModel) -> None:
        self._model = model

    def run(self, batch: Tensors) -> Tensors:
        return outputs(self._model, batch)


def _opened(model: TorchModel, path: Path, threads: int) -> Any:
    if is_program(path):
        module = torch.export.load(path).module(check_guards=False)
        return _Eager(dataclasses.replace(model, module=module))
    return engines.opened(OnnxModel(path), threads)


def is_program(path: Path) -> bool:
    """Whether it is a `.pt2`, which is a zip archive."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def rows(model: TorchModel, count: int) -> Tensors:
    """The example's rows, again and again until there are so many."""
    made = {}
    for name, array in model.example.items():
        axis = batch_axis(model, name)
        fixed = axis not in model.axes.get(name, {})
        made[name] = array if fixed else np.take(array, range(count), axis, mode="wrap")
    return made


def _errors(eager: Tensors, found: Tensors) -> dict[str, tuple[float, float]]:
    errors = {}
    for name, wanted in eager.items():
        if found[name].shape != wanted.shape:
            raise SourceError(
                f"output {name!r} has the shape {list(found[name].shape)} after the export, and "
                f"{list(wanted.shape)} before"
            )
        difference = np.abs(found[name].astype(np.float64) - wanted)
        errors[name] = (float(difference.max(initial=0)), float(np.abs(wanted).max(initial=0)))
    return errors


def _size(model: TorchModel, path: Path | None) -> int:
    if path is None:
        state = model.module.state_dict().values()
        return sum(value.numel() * value.element_size() for value in state)
    return path.stat().st_size if is_program(path) else engines.size(OnnxModel(path))


def _memory(model: TorchModel, path: Path | None, threads: int) -> int | None:
    if path is None or is_program(path):
        return torch_memory.measured(model, path, threads)
    options = EngineOptions(threads=threads)
    return memory.measured(engines.spec(OnnxModel(path)), options, model.example)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
