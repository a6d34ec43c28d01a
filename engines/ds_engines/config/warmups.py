"""Batches that are run before a model is ready."""

from __future__ import annotations

from pathlib import Path

from ds_engines.config.files import beside
from ds_engines.config.refusals import honoured, refuse_other
from ds_engines.config.tensors import check_dims, check_type, find, show
from ds_engines.errors import ConfigError
from ds_engines.spec import ModelSpec, WarmUp, WarmUpInput
from ds_proto.model_config_pb2 import ModelWarmup

FOLDER = "warmup"

_WARMUP = honoured("name", "batch_size", "inputs", "count")


def warm_up(spec: ModelSpec, given: ModelWarmup, folder: Path, source: str) -> WarmUp:
    """`folder`: where the configuration lies. Raises ConfigError naming the field."""
    where = f"{source}: model_warmup {given.name!r}"
    refuse_other(given, source, "model_warmup.", _WARMUP)
    most = max(1, spec.batch.max_batch_size)
    if not 1 <= given.batch_size <= most:
        raise ConfigError(f"{where}: batch_size is {given.batch_size}, it must be 1 to {most}")
    filled = spec.sequence.inputs if spec.sequence is not None else set()
    for tensor in spec.inputs:
        if not (tensor.name in given.inputs or tensor.optional or tensor.name in filled):
            raise ConfigError(f"{where}: input {tensor.name!r} is missing")
    inputs = tuple(
        _input(spec, name, one, folder / FOLDER, f"{where}: input {name!r}")
        for name, one in sorted(given.inputs.items())
    )
    return WarmUp(given.name, given.batch_size, max(1, given.count), inputs)


def _input(
    spec: ModelSpec, name: str, given: ModelWarmup.Input, folder: Path, where: str
) -> WarmUpInput:
    known = find(spec.inputs, name, where)
    check_type(known, given.data_type, where)
    check_dims(spec, known, given.dims, where)
    if -1 in given.dims:
        raise ConfigError(f"{where}: dims are {show(given.dims)}, but none may vary")
    match given.WhichOneof("input_data_type"):
        case "zero_data":
            source = "zero"
        case "random_data":
            source = "random"
        case "input_data_file":
            source = beside(folder, given.input_data_file, f"{where}: input_data_file")
        case _:
            raise ConfigError(
                f"{where}: one of zero_data, random_data and input_data_file must be set"
            )
    return WarmUpInput(name, known.datatype, tuple(given.dims), source)
