"""The configuration of a Python model: all of it comes from config.pbtxt, or from the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf import json_format

from ds_engines import config_pbtxt
from ds_engines.config.sequences import FALSE_TRUE
from ds_engines.config.tensors import declared
from ds_engines.errors import ConfigError
from ds_engines.spec import ModelSpec, TensorSpec
from ds_proto.model_config_pb2 import (
    DataType,
    ModelConfig,
    ModelSequenceBatching,
)

ENVIRONMENT = "EXECUTION_ENV_PATH"

_WHOLE_NUMBERS = frozenset(
    {
        "dims", "shape", "versions", "max_queue_delay_microseconds", "priority_levels",
        "default_priority_level", "default_timeout_microseconds", "max_sequence_idle_microseconds",
    }
)  # fmt: skip
"""Fields of 64 bits, which protobuf writes as texts."""


def as_json(config: ModelConfig) -> dict[str, Any]:
    """The configuration as model.py gets it: with the defaults, and numbers as numbers."""
    said = json_format.MessageToDict(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    said["max_batch_size"] = max(0, config.max_batch_size)
    whole: dict[str, Any] = _numbers(said)
    return whole


def from_json(fields: Mapping[str, Any], source: str) -> ModelConfig:
    """Back again, after auto_complete_config. Raises ConfigError naming the field."""
    try:
        return json_format.ParseDict(dict(fields), ModelConfig())
    except json_format.ParseError as error:
        raise ConfigError(f"{source}: auto_complete_config: {error}") from None


def completed(spec: ModelSpec, config: ModelConfig, source: str, folder: Path | None) -> ModelSpec:
    """The spec of a model of which only `config` says what it takes and gives.

    Raises ConfigError naming `source` and the field.
    """
    _refuse(config, source)
    size = max(0, config.max_batch_size)
    delay = config.dynamic_batching.max_queue_delay_microseconds
    spec = msgspec.structs.replace(
        spec,
        inputs=(*declared(config.input, size, f"{source}: input"), *_controls(config, size)),
        outputs=declared(config.output, size, f"{source}: output"),
        batch=msgspec.structs.replace(spec.batch, max_batch_size=size, max_delay_us=delay),
        decoupled=config.model_transaction_policy.decoupled,
        parameters={key: value.string_value for key, value in config.parameters.items()},
    )
    return config_pbtxt.apply(spec, _rest(config), source, folder)


def _rest(config: ModelConfig) -> ModelConfig:
    """What is honoured as it is for other models."""
    rest = ModelConfig()
    rest.CopyFrom(config)
    rest.ClearField("model_transaction_policy")
    rest.max_batch_size = config.max_batch_size or config_pbtxt.STATED_ZERO
    return rest


def _refuse(config: ModelConfig, source: str) -> None:
    if ENVIRONMENT in config.parameters:
        raise ConfigError(
            f"{source}: parameter {ENVIRONMENT!r} is not supported: install what the model needs "
            "where ds-serve is installed"
        )
    if config.response_cache.enable and config.model_transaction_policy.decoupled:
        raise ConfigError(f"{source}: response_cache cannot go with decoupled answers")


def _controls(config: ModelConfig, size: int) -> list[TensorSpec]:
    """The inputs by which a model is told where in its sequence a request is."""
    shape, axis = ((-1, 1), 0) if size else ((1,), None)
    return [
        TensorSpec(given.name, _control_type(given.control[0]), shape, batch_axis=axis)
        for given in config.sequence_batching.control_input
        if given.control
    ]


def _control_type(control: ModelSequenceBatching.Control) -> str:
    """What else is wrong with it is said where all controls are checked."""
    if control.data_type:
        return DataType.Name(control.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
    return next((kind for field, kind in FALSE_TRUE.items() if getattr(control, field)), "INT32")


def _numbers(value: Any, field: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _numbers(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_numbers(one, field) for one in value]
    return int(value) if field in _WHOLE_NUMBERS and isinstance(value, str) else value
