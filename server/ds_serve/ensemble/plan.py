"""Which steps of an ensemble run for a request, and when. Nothing here knows of requests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ds_engines.spec import ModelSpec, Step

ENSEMBLE = "ensemble"
"""The platform, and the engine, of such models."""

Pairs = tuple[tuple[str, str], ...]
"""The name of a model's tensor, and that of the ensemble's."""


def at(spec: ModelSpec, index: int) -> str:
    """How a step is called: by its number, the first's is 1, and its model."""
    return f"step {index + 1} (model {spec.steps[index].model!r})"


class Part(NamedTuple):
    """What a step has to do with a request: what it is given, and what is wanted of it."""

    inputs: Pairs
    outputs: Pairs


class Plan(NamedTuple):
    """The steps that are needed, by their number, and which of them read a tensor."""

    parts: Mapping[int, Part]
    readers: Mapping[str, tuple[int, ...]]


def makers(steps: Sequence[Step]) -> dict[str, int]:
    """Of each tensor that a step makes, the step's number."""
    return {tensor: index for index, step in enumerate(steps) for _, tensor in step.outputs}


def make(steps: Sequence[Step], outputs: Iterable[str], given: Collection[str]) -> Plan:
    """The plan by which `outputs` are made out of the ensemble's inputs that are `given`.

    A tensor that nobody makes and that is not given is an input that was left out: the steps do
    without it.
    """
    outputs = tuple(outputs)
    made_by = makers(steps)
    inputs: dict[int, Pairs] = {}
    wanted = set(outputs)
    due = [made_by[tensor] for tensor in outputs]
    while due:
        index = due.pop()
        if index in inputs:
            continue
        pairs = steps[index].inputs
        inputs[index] = tuple(pair for pair in pairs if pair[1] in made_by or pair[1] in given)
        read = {tensor for _, tensor in inputs[index]}
        wanted |= read
        due.extend(made_by[tensor] for tensor in read if tensor in made_by)
    parts = {index: _part(steps[index], inputs[index], wanted) for index in sorted(inputs)}
    return Plan(parts, _readers(parts))


def _part(step: Step, inputs: Pairs, wanted: Collection[str]) -> Part:
    return Part(inputs, tuple(pair for pair in step.outputs if pair[1] in wanted))


def _readers(parts: Mapping[int, Part]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for index, part in parts.items():
        for tensor in {tensor for _, tensor in part.inputs}:
            found[tensor] = (*found.get(tensor, ()), index)
    return found


class Progress:
    """How far one request is: says of each step once that it can begin."""

    def __init__(self, plan: Plan) -> None:
        self._readers = plan.readers
        self._missing = {
            index: len({tensor for _, tensor in part.inputs}) for index, part in plan.parts.items()
        }

    def start(self, given: Iterable[str]) -> list[int]:
        """The steps that need no more than the ensemble's inputs."""
        at_once = [index for index, missing in self._missing.items() if not missing]
        return at_once + self.arrive(given)

    def arrive(self, tensors: Iterable[str]) -> list[int]:
        """The steps whose last tensor is among these, which are there now."""
        ready = []
        for tensor in tensors:
            for index in self._readers.get(tensor, ()):
                self._missing[index] -= 1
                if not self._missing[index]:
                    ready.append(index)
        return ready


def cycle(steps: Sequence[Step]) -> list[int]:
    """Steps that wait for each other in a circle, in that order; empty where none do."""
    made_by = makers(steps)
    needs = {
        index: {made_by[tensor] for _, tensor in step.inputs if tensor in made_by}
        for index, step in enumerate(steps)
    }
    while free := [index for index, before in needs.items() if not before & needs.keys()]:
        for index in free:
            del needs[index]
    if not needs:
        return []
    path = [min(needs)]
    while True:
        before = min(needs[path[-1]] & needs.keys())
        if before in path:
            return path[path.index(before) :][::-1]
        path.append(before)
