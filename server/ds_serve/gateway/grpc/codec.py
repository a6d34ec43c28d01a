"""ModelInfer messages to requests, and replies to messages."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from ds_engines import datatypes
from ds_engines.errors import InvalidRequest
from ds_proto import grpc_service_pb2 as pb
from ds_serve.gateway import classification, parameters
from ds_serve.gateway.regions import Place, Regions, place_of
from ds_serve.gateway.requests import InferReply, InferRequest
from ds_serve.transport.messages import Tensor

Places = dict[str, Place]
"""Outputs by name, and where in shared memory they are wanted."""


class Wanted(NamedTuple):
    """How outputs are wanted: where in shared memory, and of which how many classes."""

    places: Places
    classes: dict[str, int]


AS_THEY_ARE = Wanted({}, {})

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of InferTensorContents for a datatype; FP16 and BF16 travel as raw contents only."""


RAW_CONTENTS = (7 << 3) | 2
"""What precedes each of raw_input_contents on the wire: field 7, length-delimited."""

EMPTY_FINAL = "triton_enable_empty_final_response"

LARGE = 64 * 1024
"""Bytes. A shorter message is quicker parsed whole."""


def read(payload: bytes) -> tuple[pb.ModelInferRequest, list[memoryview]]:
    """The message, and its raw contents, which a large payload lends instead of copying them into
    the message. Raises DecodeError.
    """
    if len(payload) < LARGE:
        return pb.ModelInferRequest.FromString(payload), []
    view = memoryview(payload)
    raw, others = [], []
    position = kept = 0
    while position < len(payload):
        start = position
        tag, position = _varint(payload, position)
        size, position = _field_size(payload, tag, position)
        if position + size > len(payload):
            raise DecodeError("the message is cut short")
        if tag == RAW_CONTENTS:
            raw.append(view[position : position + size])
            others.append(view[kept:start])
            kept = position + size
        position += size
    others.append(view[kept:])
    return pb.ModelInferRequest.FromString(b"".join(others)), raw


def _field_size(payload: bytes, tag: int, position: int) -> tuple[int, int]:
    """The bytes of a field's value, and where it begins."""
    match tag & 7:
        case 0:
            return 0, _varint(payload, position)[1]
        case 1:
            return 8, position
        case 2:
            return _varint(payload, position)
        case 5:
            return 4, position
    raise DecodeError("the message holds a field of no known kind")


def _varint(payload: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(payload) and shift < 64:
        byte = payload[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise DecodeError("the message is cut short")


def decode(
    message: pb.ModelInferRequest,
    timeout: float,
    raw: Sequence[memoryview] = (),
    regions: Regions | None = None,
) -> tuple[InferRequest, Wanted]:
    """The request in `message`, and how its outputs are wanted.

    `raw` are its raw contents where it has none itself, `timeout` the most seconds it may take,
    `regions` where inputs may lie that are not in it. Raises InvalidRequest.
    """
    arrived = time.monotonic()
    given: dict[str, Any] = {}
    schedule = None
    if message.parameters:
        given = _parameters(message.parameters)
        _check_parameters(given)
        schedule = parameters.schedule(given)
    request = InferRequest(
        model=message.model_name,
        version=message.model_version,
        inputs=_inputs(message, raw or message.raw_input_contents, regions),
        arrived=arrived,
        deadline=arrived + timeout,
        id=message.id,
        outputs=tuple([output.name for output in message.outputs]),
        parameters=given,
        schedule=schedule,
    )
    wanted = _wanted(message)
    if wanted.places and regions is not None:
        request.targets = regions.targets(wanted.places)
    return request, wanted


def _wanted(message: pb.ModelInferRequest) -> Wanted:
    wanted = AS_THEY_ARE
    for output in message.outputs:
        if not output.parameters:
            continue
        if wanted is AS_THEY_ARE:
            wanted = Wanted({}, {})
        where, said = f"output {output.name!r}", _parameters(output.parameters)
        if (place := place_of(said, where)) is not None:
            wanted.places[output.name] = place
        if count := classification.wanted(said, where):
            wanted.classes[output.name] = count
    return wanted


def _check_parameters(given: Mapping[str, Any]) -> None:
    """Raises InvalidRequest where a parameter's name is reserved."""
    for name in given:
        if name.startswith(parameters.RESERVED) and name != EMPTY_FINAL:
            raise InvalidRequest(
                f"the request has parameter {name!r}: names that begin with "
                f"{parameters.RESERVED!r} are reserved"
            )


def wants_empty_final(message: pb.ModelInferRequest) -> bool:
    """Whether a last answer without outputs is to be sent."""
    return EMPTY_FINAL in message.parameters and message.parameters[EMPTY_FINAL].bool_param


def encode(
    reply: InferReply, places: Places | None = None, regions: Regions | None = None
) -> pb.ModelInferResponse:
    """All outputs as raw contents, but those that have a place in shared memory, which are put
    there. Raises InvalidRequest where one does not fit.
    """
    message = pb.ModelInferResponse(
        model_name=reply.model, model_version=reply.version, id=reply.id
    )
    if reply.parameters:
        _say(message.parameters, reply.parameters)
    if places and regions is not None:
        regions.write_outputs(reply.outputs, places)
    for tensor in reply.outputs:
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        assert isinstance(tensor.data, memoryview)
        if places and tensor.name in places:
            _say(output.parameters, places[tensor.name].parameters(len(tensor.data)))
            message.raw_output_contents.append(b"")  # the others keep their places
        else:
            message.raw_output_contents.append(bytes(tensor.data))
    return message


def _say(parameters: Any, said: Mapping[str, str | int]) -> None:
    for name, value in said.items():
        if isinstance(value, str):
            parameters[name].string_param = value
        elif isinstance(value, bool):
            parameters[name].bool_param = value
        else:
            parameters[name].int64_param = value


def _inputs(
    message: pb.ModelInferRequest, raw: Sequence[bytes | memoryview], regions: Regions | None
) -> list[Tensor]:
    places = [_place(given) if given.parameters else None for given in message.inputs]
    sent = places.count(None)
    if raw and len(raw) != sent:
        raise InvalidRequest(
            f"the request has {sent} inputs and {len(raw)} raw_input_contents; "
            "there must be one for each"
        )
    tensors = []
    contents = iter(raw)
    for given, place in zip(message.inputs, places, strict=True):
        if place is not None:
            tensors.append(_from_region(given, place, regions))
        elif not raw:
            tensors.append(_typed(given))
        elif given.HasField("contents"):
            raise InvalidRequest(f"input {given.name!r} has contents beside raw_input_contents")
        else:
            data = memoryview(next(contents))
            tensors.append(Tensor(given.name, given.datatype, tuple(given.shape), data))
    return tensors


def _place(given: pb.ModelInferRequest.InferInputTensor) -> Place | None:
    """Where an input lies that is not sent."""
    return place_of(_parameters(given.parameters), f"input {given.name!r}")


def _from_region(
    given: pb.ModelInferRequest.InferInputTensor, place: Place, regions: Regions | None
) -> Tensor:
    if regions is None or given.HasField("contents"):
        raise InvalidRequest(f"input {given.name!r} has contents and a shared_memory_region")
    return Tensor(given.name, given.datatype, tuple(given.shape), regions.view(place))


def _typed(given: pb.ModelInferRequest.InferInputTensor) -> Tensor:
    field = CONTENTS.get(given.datatype)
    if field is None:
        datatypes.find(given.datatype, given.name)
        raise InvalidRequest(
            f"input {given.name!r}: {given.datatype} must be sent in raw_input_contents"
        )
    for other, values in given.contents.ListFields():
        if other.name != field:
            raise InvalidRequest(
                f"input {given.name!r} is {given.datatype}: its values belong in {field}, "
                f"{len(values)} are in {other.name}"
            )
    shape = tuple(given.shape)
    values = getattr(given.contents, field)
    if given.datatype == "BYTES":
        array = np.empty(len(values), dtype=np.object_)
        array[:] = list(values)
    else:
        array = _numbers(given, values)
    if datatypes.count(shape, given.name) != array.size:
        raise InvalidRequest(
            f"input {given.name!r}: shape {list(shape)} has {datatypes.count(shape)} elements, "
            f"{field} holds {array.size}"
        )
    data = datatypes.to_bytes(given.datatype, array, given.name)
    return Tensor(given.name, given.datatype, shape, memoryview(data))


def _numbers(
    given: pb.ModelInferRequest.InferInputTensor, values: Any
) -> np.ndarray[Any, np.dtype[Any]]:
    dtype = datatypes.DATATYPES[given.datatype].dtype
    wide = np.array(values, dtype=np.int64 if "int_" in CONTENTS[given.datatype] else dtype)
    array = wide.astype(dtype)
    if wide.dtype != dtype and not np.array_equal(wide, array):
        raise InvalidRequest(f"input {given.name!r} holds values beyond {given.datatype}")
    return array


def _parameters(given: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "", None)
        for name, value in given.items()
    }
