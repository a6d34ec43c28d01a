"""An encoder seen as tensors: texts in, vectors or classes out."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import orjson

from ds_engines import datatypes
from ds_engines.errors import InvalidRequest
from ds_serve.gateway.requests import InferReply, InferRequest, check, end_by_timeout
from ds_serve.gateway.text import TextBackend, asked, fault
from ds_serve.text_tensors import EMBEDDING, LABEL, PROBABILITIES, TEXT
from ds_serve.transport.messages import Tensor

PARAMETERS = (
    "dimensions",
    "normalize",
    "truncate_prompt_tokens",
    "truncation",
    "truncation_side",
    "use_activation",
)
"""Of a request, passed on as the fields of the body that they are."""


class EncoderBackend(TextBackend):
    """Tensors become a call of /v1/embeddings or /v1/classify."""

    async def submit(self, request: InferRequest) -> AsyncGenerator[InferReply, None]:
        check(self.spec, request)
        end_by_timeout(request)
        seconds = max(0.001, request.deadline - time.monotonic())
        classifies = self.spec.outputs[0].name == PROBABILITIES
        path = "/v1/classify" if classifies else "/v1/embeddings"
        body = {name: request.parameters[name] for name in PARAMETERS if name in request.parameters}
        body |= {"model": self.spec.name, "input": _texts(request)}
        if not classifies:
            body["encoding_format"] = "base64"
        trace = request.trace
        if trace is not None:
            trace.mark("REQUEST_START")
        async with self.way.forward(asked(request, path, body, seconds)) as answer:
            if answer.status != 200:
                raise await fault(answer)
            rows = orjson.loads(await answer.read())["data"]
        if trace is not None:
            trace.told(self.spec, request.id, final=True)
        found = _classes(rows) if classifies else [_vectors(rows)]
        outputs = [tensor for tensor in found if tensor.name in (request.outputs or (tensor.name,))]
        yield InferReply(self.spec.name, self.spec.version, request.id, outputs)


def _texts(request: InferRequest) -> list[str]:
    (tensor,) = request.inputs
    assert isinstance(tensor.data, memoryview), "checked before"
    values = datatypes.to_array(tensor.datatype, tensor.shape, tensor.data, tensor.name)
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{TEXT} is not UTF-8: {error}") from None


def _vectors(rows: list[dict[str, Any]]) -> Tensor:
    data = b"".join(base64.b64decode(row["embedding"]) for row in rows)
    return Tensor(EMBEDDING, "FP32", (len(rows), len(data) // 4 // len(rows)), memoryview(data))


def _classes(rows: list[dict[str, Any]]) -> list[Tensor]:
    values = np.array([row["probs"] for row in rows], dtype=np.float32)
    labels = np.array([row["label"].encode() for row in rows], dtype=np.object_)
    return [
        Tensor(PROBABILITIES, "FP32", values.shape, memoryview(values.tobytes())),
        Tensor(LABEL, "BYTES", labels.shape, memoryview(datatypes.to_bytes("BYTES", labels))),
    ]
