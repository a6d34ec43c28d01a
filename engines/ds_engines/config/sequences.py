"""Sequence batching: its strategy, what the model is told, and the state that the server keeps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import msgspec

from ds_engines.config.batching import preferred
from ds_engines.config.files import beside
from ds_engines.config.refusals import honoured, refuse_other
from ds_engines.config.tensors import check_dims, check_type, find, row_axis, show
from ds_engines.config_message import type_name, without
from ds_engines.errors import ConfigError
from ds_engines.spec import (
    Control,
    ControlKind,
    ModelSpec,
    SequencePolicy,
    StateTensor,
    TensorSpec,
)
from ds_proto.model_config_pb2 import ModelConfig, ModelSequenceBatching

FOLDER = "initial_state"

CORRID_TYPES = ("UINT64", "INT64", "UINT32", "INT32", "BYTES")
FALSE_TRUE = {"int32_false_true": "INT32", "fp32_false_true": "FP32", "bool_false_true": "BOOL"}
"""The field that gives a control's values, and the datatype that it then has."""

WHERE = "sequence_batching."

PYTHON = "python"

_SEQUENCE = honoured("max_sequence_idle_microseconds", "control_input", "state", "direct", "oldest")
_DIRECT = honoured("max_queue_delay_microseconds", "minimum_slot_utilization")
_OLDEST = honoured(
    "max_candidate_sequences",
    "preferred_batch_size",
    "max_queue_delay_microseconds",
    "preserve_ordering",
)
_CONTROL = honoured("kind", "data_type", *FALSE_TRUE)
_STATE = honoured(
    "input_name",
    "output_name",
    "data_type",
    "dims",
    "initial_state",
    "use_same_buffer_for_input_output",
)
_INITIAL = honoured("name", "data_type", "dims", "zero_data", "data_file")


def policy(spec: ModelSpec, config: ModelConfig, folder: Path, source: str) -> SequencePolicy:
    """`folder`: where the configuration lies. Raises ConfigError naming the field."""
    given = config.sequence_batching
    refuse_other(given, source, WHERE, _SEQUENCE)
    own_state = spec.engine == PYTHON
    if own_state and given.state:
        raise ConfigError(
            f"{source}: {WHERE}state is not supported for Python models: they keep their state "
            "themselves"
        )
    controls = tuple(
        _control(spec, each.name, control, source)
        for each in given.control_input
        for control in each.control
    )
    states = tuple(_state(spec, state, folder, source) for state in given.state)
    made = SequencePolicy(
        idle_us=given.max_sequence_idle_microseconds or SequencePolicy().idle_us,
        controls=controls,
        states=states,
        shown=tuple({tensor.name for tensor in config.output} & {s.output for s in states}),
        instances=spec.slots if own_state else 0,
        **_strategy(spec, given, source),
    )
    _check_distinct(made, config, source)
    return made


def _strategy(spec: ModelSpec, given: ModelSequenceBatching, source: str) -> dict[str, Any]:
    most = max(1, spec.batch.max_batch_size)
    if not given.HasField("oldest"):
        direct = given.direct
        refuse_other(direct, source, WHERE + "direct.", _DIRECT)
        part = direct.minimum_slot_utilization
        if not 0 <= part <= 1:
            raise ConfigError(
                f"{source}: {WHERE}direct.minimum_slot_utilization is {part:g}, it must be 0 to 1"
            )
        return {
            "strategy": "direct",
            "slots": most * spec.slots,
            "max_delay_us": direct.max_queue_delay_microseconds,
            "utilization": part,
        }
    oldest = given.oldest
    apart = spec.slots if spec.engine == PYTHON else 1
    refuse_other(oldest, source, WHERE + "oldest.", _OLDEST)
    if oldest.max_candidate_sequences < 0:
        raise ConfigError(
            f"{source}: {WHERE}oldest.max_candidate_sequences is "
            f"{oldest.max_candidate_sequences}, it must be 1 or more"
        )
    return {
        "strategy": "oldest",
        "slots": (oldest.max_candidate_sequences or most) * apart,
        "max_delay_us": oldest.max_queue_delay_microseconds,
        "preferred_sizes": preferred(
            spec.batch, oldest.preferred_batch_size, source, WHERE + "oldest"
        ),
    }


# ---- what the model is told


def _control(
    spec: ModelSpec, name: str, given: ModelSequenceBatching.Control, source: str
) -> Control:
    where = f"{source}: {WHERE}control_input {name!r}"
    refuse_other(given, source, WHERE + "control_input.control.", _CONTROL)
    tensor = find(spec.inputs, name, where)
    kind = _kind(given)
    datatype, values = _false_true(given, tensor, kind, where)
    if tensor.datatype != datatype:
        raise ConfigError(
            f"{where}: {kind} is {datatype}, but the model file has {tensor.datatype}"
        )
    _require_axis(spec, tensor, where)
    if math.prod(abs(size) for size in without(tensor.shape, row_axis(spec, tensor))) != 1:
        raise ConfigError(
            f"{where} has shape {show(tensor.shape)}; it must have one element for each request"
        )
    return Control(name, kind, datatype, values)


def _kind(given: ModelSequenceBatching.Control) -> ControlKind:
    name = ModelSequenceBatching.Control.Kind.Name(given.kind)
    return cast("ControlKind", name.removeprefix("CONTROL_SEQUENCE_"))


def _false_true(
    given: ModelSequenceBatching.Control, tensor: TensorSpec, kind: ControlKind, where: str
) -> tuple[str, tuple[float, float]]:
    """The control's datatype, and what stands for false and true."""
    said = {field: list(getattr(given, field)) for field in FALSE_TRUE if getattr(given, field)}
    if kind == "CORRID":
        if said or not given.data_type:
            raise ConfigError(f"{where}: CORRID needs a data_type, and no {', '.join(FALSE_TRUE)}")
        check_type(tensor, given.data_type, where)
        if tensor.datatype not in CORRID_TYPES:
            names = ", ".join(map(type_name, CORRID_TYPES))
            raise ConfigError(
                f"{where}: CORRID is {type_name(tensor.datatype)}; it must be {names}"
            )
        return tensor.datatype, (0, 1)
    if len(said) != 1 or any(len(values) != 2 for values in said.values()):
        raise ConfigError(
            f"{where}: {kind} needs one of {', '.join(FALSE_TRUE)}, with two values: "
            "for false and for true"
        )
    ((field, (off, on)),) = said.items()
    return FALSE_TRUE[field], (float(off), float(on))


# ---- what the server keeps


def _state(
    spec: ModelSpec, given: ModelSequenceBatching.State, folder: Path, source: str
) -> StateTensor:
    where = f"{source}: {WHERE}state {given.input_name!r}"
    refuse_other(given, source, WHERE + "state.", _STATE)
    into = find(spec.inputs, given.input_name, f"{where}: input_name")
    out = find(spec.outputs, given.output_name, f"{where}: output_name")
    for tensor in (into, out):
        check_type(tensor, given.data_type, f"{where}: {tensor.name!r}")
        check_dims(spec, tensor, given.dims, f"{where}: {tensor.name!r}")
        if tensor.reshape is not None:
            raise ConfigError(f"{where}: {tensor.name!r} is a state, which can have no reshape")
        _require_axis(spec, tensor, where)
    state = StateTensor(into.name, out.name, into.datatype, tuple(given.dims))
    if not given.initial_state:
        return state
    if len(given.initial_state) > 1:
        raise ConfigError(f"{where} has {len(given.initial_state)} initial_state, it may have one")
    return _initial(spec, state, given.initial_state[0], folder / FOLDER, where, source)


def _initial(
    spec: ModelSpec,
    state: StateTensor,
    given: ModelSequenceBatching.InitialState,
    folder: Path,
    where: str,
    source: str,
) -> StateTensor:
    where += ": initial_state"
    refuse_other(given, source, WHERE + "state.initial_state.", _INITIAL)
    tensor = find(spec.inputs, state.input, where)
    check_type(tensor, given.data_type, where)
    check_dims(spec, tensor, given.dims, where)
    if -1 in given.dims:
        raise ConfigError(f"{where}: dims are {show(given.dims)}, but none may vary")
    chosen = given.WhichOneof("state_data")
    if chosen is None:
        raise ConfigError(f"{where}: one of zero_data and data_file must be set")
    file = beside(folder, given.data_file, f"{where}: data_file") if chosen == "data_file" else ""
    return msgspec.structs.replace(
        state, initial_dims=tuple(given.dims), file=file, initial_name=given.name
    )


def _require_axis(spec: ModelSpec, tensor: TensorSpec, where: str) -> None:
    if spec.batch.max_batch_size and tensor.batch_axis is None:
        raise ConfigError(
            f"{where}: {tensor.name!r} has no batch axis, so requests of a batch would share it"
        )


def _check_distinct(made: SequencePolicy, config: ModelConfig, source: str) -> None:
    filled = [control.input for control in made.controls]
    filled += [name for state in made.states for name in (state.input, state.output)]
    for name in filled:
        if filled.count(name) > 1:
            raise ConfigError(f"{source}: {WHERE[:-1]} names {name!r} twice")
    for tensor in config.input:
        if tensor.name in made.inputs:
            raise ConfigError(
                f"{source}: input {tensor.name!r} is filled in by the server, as "
                "sequence_batching says: it belongs there only"
            )
