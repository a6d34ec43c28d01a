"""The generate extension's JSON: inputs and parameters side by side, each by its name.

A name that is one of the model's inputs becomes that tensor, any other a parameter; of a text model
these are what sampling_parameters may hold.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import orjson

from ds_engines import datatypes
from ds_engines.errors import InvalidRequest
from ds_engines.spec import ModelSpec, TensorSpec
from ds_serve.gateway import parameters
from ds_serve.gateway.requests import InferReply, InferRequest
from ds_serve.transport.messages import Tensor

NESTED = "parameters"
SAMPLING = "sampling_parameters"
STREAM = "stream"

Json = dict[str, Any]


def decode(spec: ModelSpec, body: bytes, seconds: float, *, stream: bool) -> InferRequest:
    """The request in `body`; a text model is asked for pieces if `stream`, unless the body says
    otherwise. `seconds`: the most that it may take. Raises InvalidRequest.
    """
    arrived = time.monotonic()
    fields = _object(body)
    request_id = fields.pop("id", "")
    if not isinstance(request_id, str):
        raise InvalidRequest(f"id is {request_id!r}; it must be a text")
    given = _merged(fields)
    if spec.input(SAMPLING) is not None and spec.task == "text":
        given = _as_text(spec, given, stream)
    inputs, others = [], {}
    for name, value in given.items():
        known = spec.input(name)
        if known is None:
            others[name] = _plain(name, value)
        else:
            inputs.append(_tensor(known, value))
    return InferRequest(
        model=spec.name,
        version=spec.version,
        inputs=inputs,
        arrived=arrived,
        deadline=arrived + seconds,
        id=request_id,
        parameters=others,
        schedule=parameters.schedule(others),
    )


def encode(reply: InferReply) -> bytes:
    """The outputs by their names, a single element without a list around it, and the model's
    parameters by theirs, where these are free.
    """
    answer: Json = dict(reply.parameters or {})
    answer |= {"model_name": reply.model, "model_version": reply.version}
    if reply.id:
        answer["id"] = reply.id
    for tensor in reply.outputs:
        assert isinstance(tensor.data, memoryview), "an answer's outputs hold their bytes"
        count = datatypes.count(tensor.shape, tensor.name)
        text = datatypes.json_of_bytes(tensor.datatype, (count,), tensor.data, tensor.name)
        answer[tensor.name] = msgspec.Raw(bytes(text).strip()[1:-1] if count == 1 else text)
    return msgspec.json.encode(answer)


def _object(body: bytes) -> Json:
    try:
        fields = orjson.loads(body or b"{}")
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    return fields


def _merged(fields: Json) -> Json:
    """All names, those in `parameters` among them."""
    nested = fields.pop(NESTED, {})
    if not isinstance(nested, dict):
        raise InvalidRequest(f"{NESTED} is {nested!r:.100}; it must be a JSON object")
    for name in fields.keys() & nested.keys():
        raise InvalidRequest(f"{name!r} is there twice, once in {NESTED}")
    return fields | nested


def _as_text(spec: ModelSpec, given: Json, stream: bool) -> Json:
    """What is no input goes into sampling_parameters, but what says when the request runs."""
    inputs = {name: value for name, value in given.items() if spec.input(name) is not None}
    others = {name: value for name, value in given.items() if name not in inputs}
    when = {name: others.pop(name) for name in parameters.NAMES & others.keys()}
    sampling = inputs.pop(SAMPLING, {})
    if isinstance(sampling, str):
        sampling = _object(sampling.encode())
    if not isinstance(sampling, dict):
        raise InvalidRequest(f"{SAMPLING} is {sampling!r:.100}; it must be a JSON object")
    inputs[SAMPLING] = orjson.dumps(sampling | others).decode()
    inputs.setdefault(STREAM, stream)
    return inputs | when


def _plain(name: str, value: Any) -> Any:
    if not isinstance(value, str | int | float):
        raise InvalidRequest(
            f"{name!r} is none of the model's inputs; as a parameter it must be a text, a number, "
            "true or false"
        )
    return value


def _tensor(known: TensorSpec, value: Any) -> Tensor:
    flat = value if isinstance(value, list) else [value]
    shape = _shape(known, len(flat))
    data = datatypes.bytes_of_json(known.name, known.datatype, shape, flat)
    return Tensor(known.name, known.datatype, shape, memoryview(data))


def _shape(known: TensorSpec, count: int) -> tuple[int, ...]:
    """The innermost free size takes what the fixed ones leave; other free sizes are 1."""
    rest = count
    shape = list(known.shape)
    for size in shape:
        if size > 0 and rest % size == 0:
            rest //= size
        elif size >= 0:
            raise _does_not_fit(known, count)
    for axis in reversed(range(len(shape))):
        if shape[axis] == -1:
            shape[axis], rest = rest, 1
    if rest != 1:
        raise _does_not_fit(known, count)
    return tuple(shape)


def _does_not_fit(known: TensorSpec, count: int) -> InvalidRequest:
    return InvalidRequest(
        f"input {known.name!r} has shape {list(known.shape)} (-1: any size), which {count} "
        "elements do not fill"
    )
