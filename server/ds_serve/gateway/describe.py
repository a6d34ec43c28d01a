"""A model's configuration and statistics as KServe's messages, for both protocols."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from ds_engines import config_pbtxt
from ds_engines.errors import Unsupported
from ds_engines.spec import ModelSpec
from ds_proto import grpc_service_pb2 as pb
from ds_serve.gateway.gateway import READY, Gateway
from ds_serve.transport.messages import Duration, Statistics

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "sequence",
    "statistics",
    "system_shared_memory",
    "trace",
)
"""Names from the published extension list, for what this server offers."""

CONFIG = "config"
"""The parameter of a load that holds a model's configuration as JSON."""

FILE = "file:"
"""What precedes a path in the name of a load's parameter that holds a file."""


def check_repository(name: str) -> None:
    """Raises Unsupported where a request names a repository: all are one to this server."""
    if name:
        raise Unsupported(f"repository {name!r}: a repository cannot be named, leave it out")


def asked_for(gateway: Gateway, name: str, version: str) -> list[ModelSpec]:
    """The version named, all ready ones of the model named, or all that are ready. Raises
    NotFound, Unavailable.
    """
    if name:
        versions = [version] if version else gateway.versions(name)
        return [gateway.spec(name, each) for each in versions or [""]]
    specs = [state.spec for state in gateway.states() if state.state == READY]
    return [spec for spec in specs if spec is not None]


def config_json(spec: ModelSpec) -> dict[str, Any]:
    return _json(config_pbtxt.describe(spec))


def statistics_json(spec: ModelSpec, counted: Statistics) -> dict[str, Any]:
    return _json(statistics(spec, counted))


def statistics(spec: ModelSpec, counted: Statistics) -> pb.ModelStatistics:
    """Durations in nanoseconds, as the extension wants them."""
    message = pb.ModelStatistics(
        name=spec.name,
        version=spec.version,
        last_inference=counted.last_inference_ms,
        inference_count=counted.inference_count,
        execution_count=counted.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(counted.success),
            fail=_duration(counted.fail),
            queue=_duration(counted.queue),
            compute_input=_duration(counted.compute_input),
            compute_infer=_duration(counted.compute_infer),
            compute_output=_duration(counted.compute_output),
            cache_hit=_duration(counted.cache_hit),
            cache_miss=_duration(counted.cache_miss),
        ),
    )
    for size, batch in sorted(counted.batches.items()):
        message.batch_stats.add(
            batch_size=size,
            compute_input=_duration(batch.compute_input),
            compute_infer=_duration(batch.compute_infer),
            compute_output=_duration(batch.compute_output),
        )
    return message


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)


def _json(message: Message) -> dict[str, Any]:
    """Protobuf's own JSON form, but with 64-bit numbers as numbers: Triton's clients want them."""
    values = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _numbers(values, message.DESCRIPTOR)


def _numbers(values: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    for field in descriptor.fields:
        value = values.get(field.name)
        if value is None:
            continue
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            values[field.name] = _map(value, kind.fields_by_name["value"])
        elif isinstance(value, list):
            values[field.name] = [_number(item, field) for item in value]
        else:
            values[field.name] = _number(value, field)
    return values


def _map(values: dict[str, Any], field: FieldDescriptor) -> dict[str, Any]:
    return {key: _number(value, field) for key, value in values.items()}


def _number(value: Any, field: FieldDescriptor) -> Any:
    if isinstance(value, dict) and field.message_type is not None:
        return _numbers(value, field.message_type)
    whole = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
    return int(value) if field.cpp_type in whole else value
