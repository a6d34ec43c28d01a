"""KServe v2 over HTTP from the client's side: a request to another server, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import orjson

from ds_engines import datatypes
from ds_engines.errors import EngineFailure, InvalidRequest, ServeError
from ds_engines.spec import BatchPolicy, ModelSpec, TensorSpec
from ds_serve.gateway.parameters import RESERVED
from ds_serve.gateway.requests import InferRequest
from ds_serve.gateway.text import FAULTS
from ds_serve.transport.messages import Tensor
from ds_serve.upstream import ENGINE

HEADER_LENGTH = "inference-header-content-length"
BINARY_OUTPUT = "binary_data_output"
_NOWHERE = Path()


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Reply(msgspec.Struct):
    outputs: list[_Output] = []
    parameters: dict[str, Any] = {}


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...] = ()
    optional: bool = False


class Metadata(msgspec.Struct):
    """What another server says of a model at /v2/models/NAME."""

    inputs: list[_Tensor] = []
    outputs: list[_Tensor] = []
    platform: str = ""


class _Transactions(msgspec.Struct):
    decoupled: bool = False


class _Input(msgspec.Struct):
    name: str
    optional: bool = False


class Config(msgspec.Struct):
    """The same at /v2/models/NAME/config."""

    max_batch_size: int = 0
    input: list[_Input] = []
    model_transaction_policy: _Transactions = msgspec.field(default_factory=_Transactions)


_decode = msgspec.json.Decoder(_Reply).decode


def path_of(base: str, model: str) -> str:
    return f"{base}/models/{quote(model, safe='')}"


def encode(request: InferRequest) -> tuple[bytes, dict[str, str]]:
    """Body and headers: all tensors as binary data, after the JSON that describes them."""
    data = [bytes(_data(tensor)) for tensor in request.inputs]
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "parameters": {"binary_data_size": len(raw)},
        }
        for tensor, raw in zip(request.inputs, data, strict=True)
    ]
    kept = {k: v for k, v in request.parameters.items() if not k.startswith(RESERVED)}
    said: dict[str, Any] = {"inputs": inputs, "parameters": kept | {BINARY_OUTPUT: True}}
    if request.id:
        said["id"] = request.id
    if request.outputs:
        said["outputs"] = [{"name": name} for name in request.outputs]
    head = orjson.dumps(said)
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join((head, *data)), headers


def decode(headers: dict[str, str], body: bytes) -> tuple[list[Tensor], dict[str, Any]]:
    """The outputs and the parameters of an answer, those that gRPC can pass on. Raises
    EngineFailure where it is none.
    """
    try:
        split = int(headers.get(HEADER_LENGTH, len(body)))
        parsed = _decode(body[:split])
        said = {k: v for k, v in parsed.parameters.items() if isinstance(v, str | int)}
        return _tensors(parsed.outputs, memoryview(body)[split:]), said
    except (ValueError, InvalidRequest) as error:
        raise EngineFailure(f"its server's answer is no inference answer: {error}") from None


def fault(status: int, headers: dict[str, str], body: bytes, model: str) -> ServeError:
    """What an answer that is no success says went wrong."""
    try:
        message = str(orjson.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace")[:500]
    retry = headers.get("retry-after", "")
    kind = FAULTS.get(status, EngineFailure)
    error = kind(f"model {model!r}: its server answers {status}: {message}")
    if retry.isdigit():
        error.retry_after = float(retry)
    return error


def spec_of(name: str, version: str, found: Metadata, config: Config) -> ModelSpec:
    """The model as this server has it. Raises EngineFailure for one that cannot be passed on."""
    if config.model_transaction_policy.decoupled:
        raise EngineFailure("it is decoupled, and such models cannot be passed on")
    if not found.inputs or not found.outputs:
        raise EngineFailure("its server names no inputs or outputs")
    optional = {tensor.name for tensor in config.input if tensor.optional}
    axis = 0 if config.max_batch_size > 0 else None
    return ModelSpec(
        name=name,
        engine=ENGINE,
        artifact=_NOWHERE,
        version=version,
        inputs=tuple(_spec(each, axis, each.name in optional) for each in found.inputs),
        outputs=tuple(_spec(each, axis, False) for each in found.outputs),
        batch=BatchPolicy(max_batch_size=max(0, config.max_batch_size)),
        platform=found.platform,
    )


def _spec(tensor: _Tensor, axis: int | None, optional: bool) -> TensorSpec:
    if tensor.datatype not in datatypes.DATATYPES:
        raise EngineFailure(f"its tensor {tensor.name!r} is {tensor.datatype!r}, which is unknown")
    return TensorSpec(tensor.name, tensor.datatype, tensor.shape, axis, optional)


def _data(tensor: Tensor) -> memoryview:
    assert isinstance(tensor.data, memoryview), "it was checked"
    return tensor.data


def _tensors(outputs: list[_Output], binary: memoryview) -> list[Tensor]:
    tensors, start = [], 0
    for output in outputs:
        size = output.parameters.get("binary_data_size")
        if type(size) is int:
            data, start = binary[start : start + size], start + size
        else:
            values = output.data or []
            raw = datatypes.bytes_of_json(output.name, output.datatype, output.shape, values)
            data = memoryview(raw)
        datatypes.check_data(output.name, output.datatype, output.shape, data)
        tensors.append(Tensor(output.name, output.datatype, output.shape, data))
    return tensors
