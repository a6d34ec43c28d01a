"""Answers of models that give several: what is sent, and which one is marked as the last."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from ds_engines.spec import ModelSpec, TensorSpec
from ds_proto import grpc_service_pb2 as pb
from ds_serve.gateway.budget import Budget
from ds_serve.gateway.config import Limits
from ds_serve.gateway.gateway import Gateway
from ds_serve.gateway.grpc.service import InferenceService
from ds_serve.gateway.requests import InferReply, InferRequest
from ds_serve.transport.messages import Tensor

SPEC = ModelSpec("many", "test", Path("x"), "text", outputs=(TensorSpec("y", "FP32", (2,)),))
ENABLE = "triton_enable_empty_final_response"


class Many(Gateway):
    """One model, whose answers are numbers and then one without outputs that ends them."""

    def spec(self, name: str, version: str = "") -> ModelSpec:
        return SPEC

    async def submit(self, request: InferRequest) -> AsyncIterator[InferReply]:  # type: ignore[override]
        for number in range(2):
            data = memoryview(np.array([number, 5], np.float32).tobytes())
            outputs = [Tensor("y", "FP32", (2,), data)]
            yield InferReply("many", "1", request.id, outputs, final=False)
        yield InferReply("many", "1", request.id, [], final=True)


async def answers(tmp_path: Path, request: pb.ModelInferRequest) -> list[pb.ModelInferResponse]:
    service = InferenceService(Many(Limits(), folder=tmp_path), Budget(1000, 1000))

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        yield request

    return [each.infer_response async for each in service.ModelStreamInfer(requests())]


@pytest.mark.parametrize("empty_too", [False, True])
async def test_an_empty_last_answer_is_sent_if_asked_for(tmp_path: Path, empty_too: bool) -> None:
    request = pb.ModelInferRequest(model_name="many", id="7")
    request.parameters[ENABLE].bool_param = empty_too
    found = await answers(tmp_path, request)
    final = [each.parameters["triton_final_response"].bool_param for each in found]
    assert final == [False, False] + [True] * empty_too
    assert [len(each.outputs) for each in found] == [1, 1] + [0] * empty_too
    assert {each.id for each in found} == {"7"}


async def test_each_answer_is_classified(tmp_path: Path) -> None:
    request = pb.ModelInferRequest(model_name="many")
    request.outputs.add(name="y").parameters["classification"].int64_param = 1
    found = await answers(tmp_path, request)
    assert [each.raw_output_contents[0][4:] for each in found] == [b"5.000000:1"] * 2
