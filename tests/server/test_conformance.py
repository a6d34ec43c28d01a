"""The conformance page names what the server offers: no more, and no less."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from ds_engines import config_pbtxt
from ds_engines.errors import ConfigError
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec
from ds_proto.model_config_pb2 import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelSequenceBatching,
)
from ds_proto.service import METHODS, SERVICE
from ds_serve.gateway import classification, parameters
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.config import Limits
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.grpc import server
from ds_serve.gateway.grpc.codec import EMPTY_FINAL
from ds_serve.gateway.grpc.service import InferenceService
from ds_serve.gateway.http import rest
from ds_serve.gateway.http.request_ids import RequestIds

PAGE = Path(__file__).parents[2] / "docs/conformance.md"
STATES = {"supported", "refused", "ignored", "not applicable"}
OPTIONAL = "[/versions/{version}]"
MODEL = ModelSpec(
    "m",
    "onnxruntime",
    Path("model.onnx"),
    inputs=(TensorSpec("x", "FP32", (-1, 4), 0),),
    outputs=(TensorSpec("y", "FP32", (-1, 4), 0),),
    batch=BatchPolicy(max_batch_size=8),
)


def table(title: str) -> dict[str, str]:
    """First column without its backticks, to the second."""
    section = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| ([^|]+?) \|", section, re.MULTILINE)
    assert rows, f"there is no table under {title}"
    return dict(rows)


def both(route: str) -> list[str]:
    return [route.replace(OPTIONAL, ""), route.replace(OPTIONAL, OPTIONAL[1:-1])]


def routes() -> set[str]:
    app = rest.build(Gateway(Limits()), Budget(1, 1))
    return {
        f"{method} {route.path}"
        for route in app.routes
        if isinstance(route, APIRoute) and route.path.startswith("/v2")
        for method in route.methods
    }


def test_every_call_and_service_is_in_the_table() -> None:
    service = InferenceService(Gateway(Limits()), Budget(1, 1))
    others = server.services(service, RequestIds()).keys() - {SERVICE}
    assert table("gRPC calls").keys() == METHODS.keys() | others


def test_every_call_has_a_method() -> None:
    assert [name for name in METHODS if not hasattr(InferenceService, name)] == []


def test_every_route_is_in_the_table() -> None:
    named = {each for route in table("HTTP routes") for each in both(route)}
    assert named == routes()


def test_parameters_that_are_read_are_in_the_tables() -> None:
    assert table("Request parameters").keys() >= parameters.NAMES | {EMPTY_FINAL}
    assert classification.PARAMETER in table("Tensor parameters")


SUBMESSAGES = {
    "": ModelConfig,
    "input.": ModelInput,
    "output.": ModelOutput,
    "instance_group.": ModelInstanceGroup,
    "dynamic_batching.": ModelDynamicBatching,
    "sequence_batching.": ModelSequenceBatching,
}


def test_every_field_of_a_configuration_is_in_the_table() -> None:
    assert table("Model configuration").keys() == {
        prefix + field.name
        for prefix, message in SUBMESSAGES.items()
        for field in message.DESCRIPTOR.fields
    }


@pytest.mark.parametrize(("name", "status"), table("Model configuration").items())
def test_the_fields_that_are_refused_are_those_that_the_table_refuses(
    name: str, status: str
) -> None:
    config = ModelConfig()
    outer, _, inner = name.rpartition(".")
    target = config
    if outer:
        target = getattr(config, outer)
        target = target.add() if hasattr(target, "add") else target
        if outer in ("input", "output"):
            target.name = "x" if outer == "input" else "y"
    fill(target, target.DESCRIPTOR.fields_by_name[inner])
    said = ""
    try:
        config_pbtxt.apply(MODEL, config, "here")
    except ConfigError as error:
        said = str(error)
    refused = f"field '{name}' is not supported" in said
    assert refused == (status == "refused"), said


def fill(message: Any, field: Any) -> None:
    """Set a field to something other than its default."""
    value = getattr(message, field.name)
    kind = field.message_type
    if kind and kind.GetOptions().map_entry:
        key = "key" if kind.fields_by_name["key"].type == field.TYPE_STRING else 1
        if kind.fields_by_name["value"].message_type:
            value[key].SetInParent()
        else:
            value[key] = "value"
    elif kind:
        nested = value.add() if field.is_repeated else value
        nested.SetInParent()
        if kind.fields:
            fill(nested, kind.fields[0])
    elif field.is_repeated:
        value.append("text" if field.type == field.TYPE_STRING else 1)
    else:
        setattr(message, field.name, "text" if isinstance(value, str) else type(value)(1))


def test_every_row_says_where_it_stands() -> None:
    rows = re.findall(r"^\| `.+?` \| ([^|]+?) \|", PAGE.read_text(), re.MULTILINE)
    assert set(rows) <= STATES
