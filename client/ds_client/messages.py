"""Requests as messages, and messages as what a caller gets: free of any transport."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ds_client.errors import ClientError, InvalidRequest, ServerFailure
from ds_client.tensors import Array, Tensor, decode, decode_contents, encode
from ds_proto import grpc_service_pb2 as pb

Inputs = Mapping[str, ArrayLike | Tensor]
Parameters = Mapping[str, bool | int | float | str]
Outputs = dict[str, Array]

FINAL = "triton_final_response"
ASK_FINAL = "triton_enable_empty_final_response"
"""Asks for a last answer that is marked as such, even if it is empty."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`shape` has -1 where a dimension may vary; the batch dimension is included."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model takes and gives."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Who answers, and which extensions of the protocol it speaks."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened, and the seconds that it took in all."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one model version since it was loaded.

    `rows` have run in `executions` of the engine. `durations` by what was timed: success, fail,
    queue, compute_input, compute_infer, compute_output, cache_hit, cache_miss.
    """

    name: str
    version: str
    rows: int
    executions: int
    durations: dict[str, Duration]


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


def outputs_of(message: pb.ModelInferResponse) -> Outputs:
    """The arrays by name. Raises ServerFailure where the message contradicts itself."""
    raw = message.raw_output_contents
    if raw and len(raw) != len(message.outputs):
        raise ServerFailure(f"{len(message.outputs)} outputs came with {len(raw)} raw contents")
    arrays: Outputs = {}
    for index, output in enumerate(message.outputs):
        name, datatype, shape = output.name, output.datatype, tuple(output.shape)
        if raw:
            arrays[name] = decode(name, datatype, shape, raw[index])
        else:
            fields = output.contents.ListFields()
            values = fields[0][1] if fields else ()
            arrays[name] = decode_contents(name, datatype, shape, values)
    return arrays


def reply_of(message: pb.ModelStreamInferResponse) -> Reply:
    """One message of a stream whose requests have their numbers as ids."""
    answer = message.infer_response
    if not answer.id.isdecimal():
        raise ServerFailure(
            message.error_message or f"an answer came for request {answer.id!r}, never sent"
        )
    error = ClientError(message.error_message) if message.error_message else None
    final = answer.parameters[FINAL].bool_param if FINAL in answer.parameters else True
    arrays = {} if error is not None else outputs_of(answer)
    return Reply(int(answer.id), final, arrays, error)


def text_of(outputs: Outputs) -> str:
    """The piece of text in an answer; empty where it carries none."""
    pieces = outputs.get("text_output")
    if pieces is None:
        return ""
    return "".join(bytes(piece).decode("utf-8", "replace") for piece in pieces.reshape(-1))


def model_info(message: pb.ModelMetadataResponse) -> ModelInfo:
    return ModelInfo(
        name=message.name,
        versions=tuple(message.versions),
        platform=message.platform,
        inputs=tuple(_tensor_info(tensor) for tensor in message.inputs),
        outputs=tuple(_tensor_info(tensor) for tensor in message.outputs),
    )


def server_info(message: pb.ServerMetadataResponse) -> ServerInfo:
    return ServerInfo(message.name, message.version, tuple(message.extensions))


def statistics_of(message: pb.ModelStatisticsResponse) -> list[Statistics]:
    return [
        Statistics(
            name=model.name,
            version=model.version,
            rows=model.inference_count,
            executions=model.execution_count,
            durations={
                field.name: Duration(value.count, value.ns / 1e9)
                for field, value in model.inference_stats.ListFields()
            },
        )
        for model in message.model_stats
    ]


def _tensor_info(message: pb.ModelMetadataResponse.TensorMetadata) -> TensorInfo:
    return TensorInfo(message.name, message.datatype, tuple(message.shape))


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
