"""Requests as messages, and messages as what a caller gets: free of any transport."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ds_client.errors import ClientError, InvalidRequest, ServerFailure, of_kind
from ds_client.tensors import Array, Tensor, decode, decode_contents, encode
from ds_proto import grpc_service_pb2 as pb

Inputs = Mapping[str, ArrayLike | Tensor]
Parameters = Mapping[str, bool | int | float | str]
Outputs = dict[str, Array]
Read = Callable[[int, int], bytes]
"""Gives the bytes of shared memory at an offset, of a size."""

REGION = "shared_memory_region"
FINAL = "triton_final_response"
ASK_FINAL = "triton_enable_empty_final_response"
"""Asks for a last answer that is marked as such, even if it is empty."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a stream, to its request number `index`.

    `final`: no other answer to that request follows. `error` is set where the request failed.
    """

    index: int
    final: bool
    arrays: Outputs
    error: ClientError | None = None

    @property
    def outputs(self) -> Outputs:
        """The answer's arrays. Raises `error` where the request failed."""
        if self.error is not None:
            raise self.error
        return self.arrays


@dataclass(frozen=True, slots=True)
class Target:
    """Which model is asked, for which outputs (none: all), and how."""

    model: str
    version: str = ""
    outputs: Sequence[str] = ()
    parameters: Parameters | None = None


def infer_request(target: Target, inputs: Inputs, id: str) -> pb.ModelInferRequest:
    """Raises InvalidRequest for an input or a parameter that cannot be sent."""
    message = pb.ModelInferRequest(model_name=target.model, model_version=target.version, id=id)
    for name, value in inputs.items():
        tensor = encode(name, value)
        message.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(tensor.data)
    for name in target.outputs:
        message.outputs.add(name=name)
    for name, parameter in (target.parameters or {}).items():
        _set(name, message.parameters[name], parameter)
    return message


def generate_request(
    model: str, prompt: str, version: str, sampling: Mapping[str, Any]
) -> pb.ModelInferRequest:
    """A streamed text request in the convention of Triton's vLLM backend."""
    try:
        settings = json.dumps(sampling)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"sampling parameters cannot be sent as JSON: {error}") from None
    inputs: Inputs = {
        "text_input": np.array([prompt.encode()], dtype=object),
        "stream": np.array([True]),
        "sampling_parameters": np.array([settings.encode()], dtype=object),
    }
    target = Target(model, version, ["text_output"], {ASK_FINAL: True})
    return infer_request(target, inputs, "0")


def outputs_of(message: pb.ModelInferResponse, shared: Read | None = None) -> Outputs:
    """The arrays by name, those in shared memory by way of `shared`. Raises ServerFailure where
    the message contradicts itself.
    """
    raw = message.raw_output_contents
    if raw and len(raw) != len(message.outputs):
        raise ServerFailure(f"{len(message.outputs)} outputs came with {len(raw)} raw contents")
    arrays: Outputs = {}
    for index, output in enumerate(message.outputs):
        name, datatype, shape = output.name, output.datatype, tuple(output.shape)
        if REGION in output.parameters:
            arrays[name] = decode(name, datatype, shape, _fetched(name, output.parameters, shared))
        elif raw:
            arrays[name] = decode(name, datatype, shape, raw[index])
        else:
            fields = output.contents.ListFields()
            values = fields[0][1] if fields else ()
            arrays[name] = decode_contents(name, datatype, shape, values)
    return arrays


def number_of(message: pb.ModelStreamInferResponse) -> int:
    """Which request of a stream an answer is for; their numbers are their ids. Raises
    ServerFailure.
    """
    id = message.infer_response.id
    if not id.isdecimal():
        raise ServerFailure(
            message.error_message or f"an answer came for request {id!r}, never sent"
        )
    return int(id)


def reply_of(message: pb.ModelStreamInferResponse, shared: Read | None = None) -> Reply:
    """One message of a stream whose requests have their numbers as ids. Raises ServerFailure."""
    answer = message.infer_response
    number = number_of(message)
    error = _error_of(message) if message.error_message else None
    final = answer.parameters[FINAL].bool_param if FINAL in answer.parameters else True
    arrays = {} if error is not None else outputs_of(answer, shared)
    return Reply(number, final, arrays, error)


def _error_of(message: pb.ModelStreamInferResponse) -> ClientError:
    """ds-serve tells the kind of an error by parameters, where other servers have a text alone."""
    said = message.infer_response.parameters
    if "error_kind" not in said:
        return ClientError(message.error_message)
    retry_after = said["retry_after"].double_param if "retry_after" in said else None
    return of_kind(said["error_kind"].string_param, message.error_message, retry_after)


def _fetched(name: str, said: Any, shared: Read | None) -> bytes:
    if shared is None:
        raise ServerFailure(f"output {name!r} is in shared memory, which was not asked for")
    offset = said["shared_memory_offset"].int64_param if "shared_memory_offset" in said else 0
    return shared(offset, said["shared_memory_byte_size"].int64_param)


def text_of(outputs: Outputs) -> str:
    """The piece of text in an answer; empty where it carries none."""
    pieces = outputs.get("text_output")
    if pieces is None:
        return ""
    return "".join(bytes(piece).decode("utf-8", "replace") for piece in pieces.reshape(-1))


def _set(name: str, target: pb.InferParameter, value: bool | int | float | str) -> None:
    fields = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    field = fields.get(type(value))
    if field is None:
        raise InvalidRequest(
            f"parameter {name!r} is a {type(value).__name__}; it must be bool, int, float or str"
        )
    try:
        setattr(target, field, value)
    except ValueError as error:
        raise InvalidRequest(f"parameter {name!r}: {error}") from None


def with_timeout(parameters: Parameters | None, seconds: float | None) -> Parameters | None:
    """The parameters, with what the server may take for the request."""
    if seconds is None:
        return parameters
    return {**(parameters or {}), "timeout": max(1, round(seconds * 1e6))}
