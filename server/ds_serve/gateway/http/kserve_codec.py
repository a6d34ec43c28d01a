"""KServe v2 inference over HTTP: JSON, and JSON followed by binary tensors."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import msgspec

from ds_engines import datatypes
from ds_engines.errors import InvalidRequest
from ds_serve.gateway import classification, parameters
from ds_serve.gateway.http.answer import JSON, Answer, Headers
from ds_serve.gateway.regions import Place, Regions, place_of
from ds_serve.gateway.requests import InferReply, InferRequest
from ds_serve.transport.messages import Tensor

HEADER_LENGTH = b"inference-header-content-length"

Parameters = dict[str, Any]


class InputJson(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | None = None
    parameters: Parameters = {}


class OutputJson(msgspec.Struct):
    name: str
    parameters: Parameters = {}


class RequestJson(msgspec.Struct):
    inputs: list[InputJson] = []
    outputs: list[OutputJson] = []
    id: str = ""
    parameters: Parameters = {}


class OutputAnswer(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Parameters = {}
    data: msgspec.Raw | None = None


class ReplyJson(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[OutputAnswer]
    id: str = ""
    parameters: Parameters | None = None


class Wanted(msgspec.Struct):
    """Which outputs the client wants as binary data, which in shared memory, and of which how many
    classes.
    """

    binary: frozenset[str] = frozenset()
    rest: bool = False
    places: dict[str, Place] = {}
    classes: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.binary or self.rest


ALL_BINARY = Wanted(rest=True)
ALL_JSON = Wanted()

_decode = msgspec.json.Decoder(RequestJson).decode
_encode = msgspec.json.Encoder().encode


def decode(
    model: str,
    version: str,
    headers: dict[bytes, bytes],
    body: bytes | memoryview,
    timeout: float,
    regions: Regions | None = None,
) -> tuple[InferRequest, Wanted]:
    """The request in `body`. `timeout`: the most seconds it may take.

    `regions` are where tensors may lie that are not in the body. Raises InvalidRequest.
    """
    arrived = time.monotonic()
    view = memoryview(body)
    split = _header_length(headers, len(body))
    parsed = _parsed(view[:split])
    schedule = None
    if parsed.parameters:
        _check_parameters(parsed.parameters)
        schedule = parameters.schedule(parsed.parameters)
    request = InferRequest(
        model=model,
        version=version,
        inputs=_inputs(parsed.inputs, view[split:], regions),
        arrived=arrived,
        deadline=arrived + header_timeout(headers, timeout),
        id=parsed.id,
        outputs=tuple([output.name for output in parsed.outputs]),
        parameters=parsed.parameters,
        schedule=schedule,
    )
    wanted = _wanted(parsed)
    if wanted.places and regions is not None:
        request.targets = regions.targets(wanted.places)
    return request, wanted


def encode(reply: InferReply, wanted: Wanted, regions: Regions | None = None) -> Answer:
    """JSON, followed by the outputs that are wanted as binary data. Outputs that are wanted in
    shared memory are put there. Raises InvalidRequest where one does not fit.
    """
    binary: list[memoryview] = []
    if wanted.places and regions is not None:
        regions.write_outputs(reply.outputs, wanted.places)
    outputs = [_output(tensor, wanted, binary) for tensor in reply.outputs]
    body = _encode(ReplyJson(reply.model, reply.version, outputs, reply.id, reply.parameters))
    if not binary:
        return Answer(200, [body], [(b"content-type", JSON)])
    headers: Headers = [
        (b"content-type", b"application/octet-stream"),
        (HEADER_LENGTH, b"%d" % len(body)),
    ]
    return Answer(200, [b"".join((body, *binary))], headers)


def _parsed(text: memoryview) -> RequestJson:
    try:
        return _decode(text)
    except RecursionError:
        raise InvalidRequest("the request's JSON is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        if (parsed := _with_nans(bytes(text))) is not None:
            return parsed
        raise InvalidRequest(f"the request is not an inference request in JSON: {error}") from None


def _with_nans(text: bytes) -> RequestJson | None:
    """JSON with NaN, Infinity and -Infinity, which Python's clients write as Triton's server does.

    Rare, so it may be slow. Encoding it finds halves of surrogate pairs, which Python lets pass.
    """
    if b"NaN" not in text and b"Infinity" not in text:
        return None
    try:
        values = json.loads(text)
        json.dumps(values, ensure_ascii=False).encode()
        return msgspec.convert(values, RequestJson)
    except (ValueError, RecursionError):
        return None


def _check_parameters(given: Parameters) -> None:
    """Raises InvalidRequest where a parameter's name is reserved, or its value is none."""
    for name, value in given.items():
        if name.startswith(parameters.RESERVED):
            raise InvalidRequest(
                f"the request has parameter {name!r}: names that begin with "
                f"{parameters.RESERVED!r} are reserved"
            )
        if not isinstance(value, str | int | float):
            raise InvalidRequest(
                f"parameter {name!r} is {value!r:.100}; it must be a text, a number, true or false"
            )


def _header_length(headers: dict[bytes, bytes], size: int) -> int:
    value = headers.get(HEADER_LENGTH)
    if value is None:
        return size
    if not value.isdigit() or len(value) > 12 or int(value) > size:
        raise InvalidRequest(
            f"Inference-Header-Content-Length is {value.decode(errors='replace')!r}; it must be "
            f"the length of the JSON part, at most the body's {size} bytes"
        )
    return int(value)


def _inputs(inputs: list[InputJson], binary: memoryview, regions: Regions | None) -> list[Tensor]:
    tensors = []
    start = 0
    for given in inputs:
        if not given.parameters:
            tensors.append(_from_json(given))
            continue
        size = given.parameters.get("binary_data_size")
        if "shared_memory_region" in given.parameters:
            tensors.append(_from_region(given, regions))
            continue
        if size is None:
            tensors.append(_from_json(given))
            continue
        stop = start + _binary_size(given, size)
        if stop > len(binary):
            raise InvalidRequest(
                f"input {given.name!r} announces {size} bytes of binary data; "
                f"{len(binary) - start} are left in the body"
            )
        tensors.append(Tensor(given.name, given.datatype, given.shape, binary[start:stop]))
        start = stop
    if start != len(binary):
        raise InvalidRequest(
            f"{len(binary) - start} bytes follow the last input's binary data; "
            "binary_data_size tells how many belong to each"
        )
    return tensors


def _from_region(given: InputJson, regions: Regions | None) -> Tensor:
    where = f"input {given.name!r}"
    if given.data is not None or "binary_data_size" in given.parameters:
        raise InvalidRequest(f"{where} has data of its own and a shared_memory_region")
    place = place_of(given.parameters, where)
    if place is None or regions is None:
        raise InvalidRequest(f"{where}: there is no shared memory here")
    return Tensor(given.name, given.datatype, given.shape, regions.view(place))


def _binary_size(given: InputJson, size: object) -> int:
    if type(size) is not int or size < 0:
        raise InvalidRequest(
            f"input {given.name!r}: binary_data_size is {size!r}; it must be a number of bytes"
        )
    if given.data is not None:
        raise InvalidRequest(f"input {given.name!r} has both data and binary_data_size")
    return size


def _from_json(given: InputJson) -> Tensor:
    if given.data is None:
        raise InvalidRequest(f"input {given.name!r} has neither data nor binary_data_size")
    data = datatypes.bytes_of_json(given.name, given.datatype, given.shape, given.data)
    return Tensor(given.name, given.datatype, given.shape, memoryview(data))


def _wanted(parsed: RequestJson) -> Wanted:
    rest = parsed.parameters.get("binary_data_output") is True
    if not parsed.outputs:
        return ALL_BINARY if rest else ALL_JSON
    named = {output.name: output.parameters.get("binary_data", rest) for output in parsed.outputs}
    places: dict[str, Place] = {}
    classes: dict[str, int] = {}
    for output in parsed.outputs:
        if not output.parameters:
            continue
        where = f"output {output.name!r}"
        if (place := place_of(output.parameters, where)) is not None:
            places[output.name] = place
        if count := classification.wanted(output.parameters, where):
            classes[output.name] = count
    binary = frozenset(name for name, wanted in named.items() if wanted is True)
    return Wanted(binary, places=places, classes=classes)


def _output(tensor: Tensor, wanted: Wanted, binary: list[memoryview]) -> OutputAnswer:
    assert isinstance(tensor.data, memoryview)
    answer = OutputAnswer(tensor.name, tensor.datatype, tensor.shape)
    if tensor.name in wanted.places:
        return answer  # with parameters, NVIDIA's C++ client would look for binary data
    if tensor.name in wanted:
        answer.parameters = {"binary_data_size": len(tensor.data)}
        binary.append(tensor.data)
    else:
        text = datatypes.json_of_bytes(tensor.datatype, tensor.shape, tensor.data, tensor.name)
        answer.data = msgspec.Raw(text)
    return answer


def header_timeout(headers: dict[bytes, bytes], most: float) -> float:
    """Seconds of the X-Request-Timeout header, at most `most`."""
    given = headers.get(b"x-request-timeout")
    if given is None:
        return most
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise InvalidRequest(
            f"X-Request-Timeout is {given.decode(errors='replace')!r}; it must be seconds above 0"
        )
    return min(seconds, most)
