"""What an answer must look like: OpenAI's `response_format` and vLLM's `structured_outputs`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ds_engines.openvino_constraints import Constraint
from ds_serve.text.errors import BadField

ANY_OBJECT = '{"type":"object"}'


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    """`response_format.json_schema`."""

    name: str
    schema: dict[str, Any] | bool
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """vLLM's field; one of them is set. `json` is a schema, or its text; `grammar` is EBNF."""

    json: dict[str, Any] | str | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Format(msgspec.Struct, frozen=True):
    """A constraint, and the field of the body that asks for it."""

    field: str
    constraint: Constraint


def wanted_format(
    response: ResponseFormat | None,
    structured: StructuredOutputs | None,
    guided: dict[str, Any],
) -> Format | None:
    """What one of the fields asks for; `guided` are vLLM's older ones. Raises BadField."""
    found = [*_response(response), *_structured(structured)]
    for name, value in guided.items():
        if value is not None:
            found.append(Format(name, _constraint(name.removeprefix("guided_"), value)))
    if len(found) > 1:
        names = " and ".join(each.field for each in found)
        raise BadField(found[-1].field, f"{names} each say what the answer looks like; give one")
    return found[0] if found else None


def _response(wanted: ResponseFormat | None) -> list[Format]:
    if wanted is None or wanted.type == "text":
        return []
    if wanted.type == "json_object":
        return [Format("response_format", Constraint("json", ANY_OBJECT))]
    if wanted.json_schema is None:
        raise BadField("response_format", "response_format json_schema needs a json_schema")
    return [Format("response_format", _constraint("json", wanted.json_schema.schema))]


def _structured(wanted: StructuredOutputs | None) -> list[Format]:
    if wanted is None:
        return []
    field = "structured_outputs"
    given = {k: v for k, v in msgspec.structs.asdict(wanted).items() if v not in (None, False)}
    if len(given) != 1:
        said = ", ".join(given) or "nothing"
        raise BadField(
            field, f"{field} has {said}; give one of json, regex, choice, grammar, json_object"
        )
    ((kind, value),) = given.items()
    return [Format(field, _constraint(kind, value))]


def _constraint(kind: str, value: Any) -> Constraint:
    match kind:
        case "json_object":
            return Constraint("json", ANY_OBJECT)
        case "json":
            # The order of properties is the answer's: a decoded object keeps it.
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            return Constraint("json", text)
        case "choice":
            return Constraint("choice", choices=tuple(value))
        case "regex":
            return Constraint("regex", value)
    return Constraint("grammar", value)
