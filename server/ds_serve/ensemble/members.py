"""Whether an ensemble can answer, which is for its members to say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from ds_engines.errors import ConfigError
from ds_engines.spec import ModelSpec, Step, TensorSpec
from ds_serve.ensemble.plan import at
from ds_serve.transport.messages import ModelState

READY, FAILED = "ready", "failed"
PASSING = ("restarting", "loading")
"""States that end by themselves, the worse first."""


class Made(NamedTuple):
    """A tensor of the ensemble, and where it comes from."""

    tensor: TensorSpec
    by: str


def _missing(version: str) -> str:
    return f"it has no version {version}, or is not there" if version else "there is no such model"


def judge(spec: ModelSpec, states: Sequence[ModelState]) -> tuple[str, str]:
    """The ensemble's state and the reason for it, from those of all models."""
    if circle := contains_itself(spec, states):
        return FAILED, f"{spec.artifact}: the ensemble contains itself: {' -> '.join(circle)}"
    members = [find(step, states) for step in spec.steps]
    faults = [
        (FAILED, f"{at(spec, index)}: {_missing(step.version)}")
        if member is None
        else (member.state, f"{at(spec, index)} is {_said(member)}")
        for index, (step, member) in enumerate(zip(spec.steps, members, strict=True))
        if member is None or member.state != READY
    ]
    for wanted in PASSING:
        if faults and all(state in PASSING for state, _ in faults):
            for state, reason in faults:
                if state == wanted:
                    return state, reason
    if faults:
        return FAILED, "; ".join(reason for state, reason in faults if state not in PASSING)
    try:
        check(spec, [_spec(member) for member in members])
    except ConfigError as error:
        return FAILED, str(error)
    return READY, ""


def find(step: Step, states: Iterable[ModelState]) -> ModelState | None:
    """The version of a model that a step means: the newest that is ready, or else the newest."""
    found = [
        state
        for state in states
        if state.name == step.model and step.version in ("", state.version)
    ]
    return max(found, key=_rank, default=None)


def contains_itself(spec: ModelSpec, states: Sequence[ModelState]) -> list[str]:
    """The names of the ensembles on the way from this one back to it; empty where there is none."""
    due = [[spec.name, step.model] for step in spec.steps]
    seen = set()
    while due:
        path = due.pop()
        if path[-1] == spec.name:
            return path
        if path[-1] in seen:
            continue
        seen.add(path[-1])
        inner = [state.spec for state in states if state.name == path[-1] and state.spec]
        due.extend([*path, step.model] for one in inner for step in one.steps)
    return []


def check(spec: ModelSpec, members: Sequence[ModelSpec]) -> None:
    """Raises ConfigError where a step's model does not fit; it names file, step and tensor."""
    made = {tensor.name: Made(_inner(tensor), "the request") for tensor in spec.inputs}
    for index, member in enumerate(members):
        where = f"{spec.artifact}: {at(spec, index)}"
        _check_member(spec, member, where)
        made |= dict(_outputs(spec, index, member, where))
    for index, member in enumerate(members):
        _check_inputs(spec, index, member, made)
    for output in spec.outputs:
        _check_fit(made[output.name], _inner(output), f"{spec.artifact}: output {output.name!r}")


def _inner(tensor: TensorSpec) -> TensorSpec:
    """One of the ensemble's own, as its steps have it."""
    if tensor.reshape is None:
        return tensor
    return msgspec.structs.replace(tensor, shape=tensor.reshape)


def _check_member(spec: ModelSpec, member: ModelSpec, where: str) -> None:
    if member.decoupled or member.task == "text":
        raise ConfigError(
            f"{where} is decoupled: it may answer a request with any number of answers, which a "
            "step of an ensemble cannot"
        )
    most, needed = member.batch.max_batch_size, spec.batch.max_batch_size
    if most < needed:
        raise ConfigError(
            f"{where}: its max_batch_size is {most}, but the ensemble's is {needed}; the "
            "ensemble's can be no higher than that of any of its models"
        )


def _outputs(
    spec: ModelSpec, index: int, member: ModelSpec, where: str
) -> Iterator[tuple[str, Made]]:
    for name, tensor in spec.steps[index].outputs:
        found = _tensor(member.public.outputs, name, f"{where}: output_map", "output")
        _check_rows(spec, found, where)
        yield tensor, Made(found, at(spec, index))


def _check_inputs(spec: ModelSpec, index: int, member: ModelSpec, made: dict[str, Made]) -> None:
    where = f"{spec.artifact}: {at(spec, index)}"
    mapped = dict(spec.steps[index].inputs)
    for name, tensor in mapped.items():
        found = _tensor(member.public.inputs, name, f"{where}: input_map", "input")
        _check_rows(spec, found, where)
        given = made[tensor]
        _check_fit(given, found, f"{where}: input {name!r}")
        if given.tensor.optional and given.by == "the request" and not found.optional:
            raise ConfigError(
                f"{where}: input {name!r} is given {tensor!r}, which a request may leave out; the "
                "model cannot do without it"
            )
    for tensor_spec in member.public.inputs:
        if tensor_spec.name not in mapped and not tensor_spec.optional:
            raise ConfigError(
                f"{where}: input_map gives no tensor to the model's input {tensor_spec.name!r}"
            )


def _tensor(known: Sequence[TensorSpec], name: str, where: str, what: str) -> TensorSpec:
    for tensor in known:
        if tensor.name == name:
            return tensor
    names = ", ".join(tensor.name for tensor in known)
    raise ConfigError(f"{where} names the {what} {name!r}, but the model's {what}s are: {names}")


def _check_rows(spec: ModelSpec, tensor: TensorSpec, where: str) -> None:
    if spec.batch.max_batch_size and tensor.batch_axis != 0:
        axis = "on no axis" if tensor.batch_axis is None else f"on axis {tensor.batch_axis}"
        raise ConfigError(
            f"{where}: the model's tensor {tensor.name!r} has its rows {axis}; in an ensemble with "
            "a max_batch_size above 0 they must be on the first"
        )


def _check_fit(made: Made, wanted: TensorSpec, where: str) -> None:
    tensor = made.tensor
    if tensor.datatype != wanted.datatype:
        raise ConfigError(
            f"{where} is {wanted.datatype}, but {tensor.name!r} of {made.by} is {tensor.datatype}"
        )
    fits = len(tensor.shape) == len(wanted.shape) and all(
        -1 in (size, other) or size == other
        for size, other in zip(tensor.shape, wanted.shape, strict=True)
    )
    if not fits:
        raise ConfigError(
            f"{where} has shape {list(wanted.shape)}, but {tensor.name!r} of {made.by} has "
            f"{list(tensor.shape)} (-1: any size)"
        )


def _spec(state: ModelState | None) -> ModelSpec:
    assert state is not None, "it is ready"
    assert state.spec is not None, "it is ready"
    return state.spec


def _said(state: ModelState) -> str:
    return f"{state.state}: {state.reason}" if state.reason else state.state


def _rank(state: ModelState) -> tuple[bool, int, str]:
    version = state.version
    return state.state == READY, int(version) if version.isdecimal() else -1, version
