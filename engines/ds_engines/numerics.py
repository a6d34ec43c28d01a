"""`--debug-numerics`: which layer is the first that yields NaN or infinity.

A layer is the first if what it was given had none: a mask of minus infinity, which many models hold
as a constant, is no fault, and NaN that is made of it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np

from ds_engines.base import (
    INSPECTORS,
    Array,
    BatchEngine,
    EngineOptions,
    Tensors,
)
from ds_engines.errors import EngineFailure
from ds_engines.onnx_graph import Node
from ds_engines.spec import ModelSpec

CONSTANT = ("Constant", "ConstantOfShape")
"""Layers of ONNX files that yield what stands in the file."""

_EXPONENT = 0x7F80
"""Of BF16's bits: all of them set is infinity, or NaN where the fraction is not zero."""


class Found(NamedTuple):
    """How many of a tensor's numbers are NaN and infinite, and how many it has."""

    nan: int = 0
    inf: int = 0
    size: int = 0

    @property
    def bad(self) -> bool:
        return bool(self.nan or self.inf)

    def __str__(self) -> str:
        parts = [f"{self.nan} NaN"] if self.nan else []
        parts += [f"{self.inf} infinite"] if self.inf else []
        return f"{' and '.join(parts)} of {self.size} numbers"


class Step(NamedTuple):
    """A layer that has run. `inputs` are names of tensors, `outputs` what was found in each."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: Mapping[str, Found]


class Inspector(Protocol):
    """Runs a model in a way that shows every layer."""

    def run(self, batch: Tensors) -> tuple[Mapping[str, Found], list[Step]]:
        """What was found in inputs and constants, by their names; and the layers, in order.

        Raises EngineFailure.
        """


Inspect = Callable[[BatchEngine, EngineOptions], Inspector]


class NumericsEngine:
    """An engine whose every batch is first run layer by layer, which takes several times as long.

    A batch in which a layer yields NaN or infinity fails with that layer's name.
    """

    def __init__(self, engine: BatchEngine, options: EngineOptions) -> None:
        module, _, name = INSPECTORS[engine.spec.engine].partition(":")
        make: Inspect = getattr(import_module(module), name)
        self.spec: ModelSpec = engine.spec
        self._engine = engine
        self._inspector: Inspector | None = make(engine, options)

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        assert self._inspector is not None, "it is open"
        check(self.spec.name, *self._inspector.run(batch))
        return self._engine.run(batch, outputs)

    def close(self) -> None:
        self._inspector = None
        self._engine.close()


def check(model: str, given: Mapping[str, Found], steps: Iterable[Step]) -> None:
    """Raises EngineFailure that names the first layer which yields what it was not given."""
    known = dict(given)
    for step in steps:
        sources = [known[name] for name in step.inputs if name in known]
        nan = any(source.nan for source in sources)
        bad = any(source.bad for source in sources)
        for name, found in step.outputs.items():
            if (found.nan and not nan) or (found.inf and not bad):
                raise EngineFailure(
                    f"model {model!r}: layer {step.name!r} ({step.op}) is the first that yields "
                    f"NaN or infinity: {found} in its output {name!r}"
                )
        known |= step.outputs


def counted(array: Array, *, brain: bool = False) -> Found:
    """What is in an array; nothing in one of another type than a real number's. `brain`: its
    numbers are bits of BF16.
    """
    if brain:
        exponent = (array & _EXPONENT) == _EXPONENT
        fraction = (array & 0x7F) != 0
        return Found(
            int((exponent & fraction).sum()), int((exponent & ~fraction).sum()), array.size
        )
    if not np.issubdtype(array.dtype, np.floating):
        return Found(size=array.size)
    if np.isfinite(array).all():
        return Found(size=array.size)
    return Found(int(np.isnan(array).sum()), int(np.isinf(array).sum()), array.size)


def fixed(nodes: Iterable[Node], found: Mapping[str, Found]) -> dict[str, Found]:
    """What was found in constants that are layers of an ONNX file."""
    names = (name for node in nodes if node.op in CONSTANT for name in node.outputs)
    return {name: found[name] for name in names if name in found}


def steps(nodes: Iterable[Node], found: Mapping[str, Found]) -> list[Step]:
    """The other layers of an ONNX file, with what was found in those outputs that are shown."""
    return [
        Step(
            node.name,
            node.op,
            node.inputs,
            {name: found[name] for name in node.outputs if name in found},
        )
        for node in nodes
        if node.op not in CONSTANT
    ]


def literals(values: Iterable[Any]) -> Found:
    """Of numbers that stand in a graph themselves."""
    real = [value for value in values if isinstance(value, float)]
    return counted(np.array(real, np.float64))
