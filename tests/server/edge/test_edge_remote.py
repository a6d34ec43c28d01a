"""KServe v2 from the client's side: what is sent, and what answers may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from ds_engines.errors import EngineFailure, InvalidRequest, Unavailable
from ds_serve.edge import remote, rows
from ds_serve.gateway.http import kserve_codec
from ds_serve.gateway.requests import InferRequest


def test_what_is_sent_is_what_a_server_reads() -> None:
    inputs = [
        rows.tensor("x", "FP32", np.array([[1, 2]], np.float32)),
        rows.tensor("w", "BYTES", np.array([b"a", b""], dtype=object)),
    ]
    said = {"timeout": 5, "triton_enable_empty_final_response": True, "own": "v"}
    request = InferRequest("m", "", inputs, 0, 1, id="7", outputs=("y",), parameters=said)
    body, headers = remote.encode(request)
    read, wanted = kserve_codec.decode(
        "m", "", {name.encode(): value.encode() for name, value in headers.items()}, body, 1
    )
    assert [(t.name, t.datatype, t.shape, bytes(t.data)) for t in read.inputs] == [  # type: ignore[arg-type]
        (t.name, t.datatype, t.shape, bytes(t.data))  # type: ignore[arg-type]
        for t in inputs
    ]
    assert (read.id, read.outputs) == ("7", ("y",))
    assert read.parameters == {"timeout": 5, "own": "v", "binary_data_output": True}
    assert "y" in wanted


def answer(**output: Any) -> bytes:
    whole = {"name": "y", "datatype": "FP32", "shape": [2]} | output
    return orjson.dumps({"outputs": [whole], "parameters": {"a": 1, "b": "x", "c": 1.5}})


def test_answers_in_json_and_in_binary() -> None:
    (tensor,), said = remote.decode({}, answer(data=[1, 2]))
    assert rows.array(tensor).tolist() == [1, 2]
    assert said == {"a": 1, "b": "x"}
    head = answer(parameters={"binary_data_size": 8})
    body = head + np.array([3, 4], np.float32).tobytes()
    (tensor,), _ = remote.decode({remote.HEADER_LENGTH: str(len(head))}, body)
    assert rows.array(tensor).tolist() == [3, 4]


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        answer(data=[1]),
        answer(parameters={"binary_data_size": 8}),
        answer(shape=3),
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(EngineFailure, match="its server's answer is no inference answer"):
        remote.decode({}, body)


def test_errors_keep_their_kind_and_their_words() -> None:
    error = remote.fault(503, {"retry-after": "3"}, b'{"error": "full"}', "m")
    assert isinstance(error, Unavailable)
    assert str(error) == "model 'm': its server answers 503: full"
    assert error.retry_after == 3
    assert isinstance(remote.fault(400, {}, b"no JSON", "m"), InvalidRequest)
    assert isinstance(remote.fault(418, {}, b"", "m"), EngineFailure)


def test_what_another_server_says_of_a_model() -> None:
    tensor = remote.Metadata(
        inputs=[remote._Tensor("x", "FP32", (-1, 4))], outputs=[remote._Tensor("y", "FP32", (-1,))]
    )
    spec = remote.spec_of("m", "1", tensor, remote.Config(max_batch_size=8))
    assert spec.batch.max_batch_size == 8
    assert [each.batch_axis for each in (*spec.inputs, *spec.outputs)] == [0, 0]
    alone = remote.spec_of("m", "1", tensor, remote.Config())
    assert alone.inputs[0].batch_axis is None
    with pytest.raises(EngineFailure, match="names no inputs or outputs"):
        remote.spec_of("m", "1", remote.Metadata(), remote.Config())
