"""The chat model over KServe, HTTP and gRPC, with Triton's clients and with ours."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
from serving import Server
from texts import ENDLESS, TEXT
from tritonclient.utils import InferenceServerException

import ds_client
from ds_client import AsyncClient, Client

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is"
SAMPLING: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture
def expected(client: openai.OpenAI) -> str:
    """The same text as OpenAI's API gives it."""
    text = client.completions.create(model=TEXT, prompt=PROMPT, **SAMPLING).choices[0].text
    assert "Paris" in text
    return text


@pytest.fixture
def http(server: Server) -> Iterator[tritonclient.http.InferenceServerClient]:
    client = tritonclient.http.InferenceServerClient(server.http_address)
    yield client
    client.close()


@pytest.fixture
def grpc(server: Server) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    client = tritonclient.grpc.InferenceServerClient(server.grpc)
    yield client
    client.close()


def tensors(kind: Any, prompt: str = PROMPT, stream: bool | None = None, **sampling: Any) -> Any:
    """The inputs of a request, made by one of Triton's two clients."""

    def tensor(name: str, datatype: str, value: Any) -> Any:
        made = kind.InferInput(name, [1], datatype)
        made.set_data_from_numpy(np.array([value], np.object_ if datatype == "BYTES" else bool))
        return made

    found = [tensor("text_input", "BYTES", prompt.encode())]
    if stream is not None:
        found.append(tensor("stream", "BOOL", stream))
    if sampling:
        found.append(tensor("sampling_parameters", "BYTES", json.dumps(sampling).encode()))
    return found


def text_of(result: Any) -> str:
    return result.as_numpy("text_output").item().decode()


def test_http(http: tritonclient.http.InferenceServerClient, expected: str) -> None:
    inputs = tensors(tritonclient.http, **SAMPLING)
    result = http.infer(TEXT, inputs, request_id="7")
    assert text_of(result) == expected
    assert result.get_response()["id"] == "7"


def test_json_over_http(server: Server, expected: str) -> None:
    def one(name: str, value: str) -> dict[str, Any]:
        return {"name": name, "datatype": "BYTES", "shape": [1], "data": [value]}

    inputs = [one("text_input", PROMPT), one("sampling_parameters", json.dumps(SAMPLING))]
    answer = server.client.post(f"{server.http}/v2/models/{TEXT}/infer", json={"inputs": inputs})
    assert answer.status_code == 200
    (output,) = answer.json()["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("text_output", "BYTES", [1])
    assert output["data"] == [expected]


def test_grpc(grpc: tritonclient.grpc.InferenceServerClient, expected: str) -> None:
    result = grpc.infer(TEXT, tensors(tritonclient.grpc, **SAMPLING), request_id="7")
    assert text_of(result) == expected
    assert result.get_response().id == "7"


async def test_numbers_as_strings(server: Server, expected: str) -> None:
    """As the example client of Triton's vLLM backend sends them, in the same place twice."""
    sampling = {name: str(value) for name, value in SAMPLING.items()}
    request = {
        "model_name": TEXT,
        "inputs": tensors(tritonclient.grpc.aio, stream=True, **sampling),
        "outputs": [tritonclient.grpc.aio.InferRequestedOutput("text_output")],
        "request_id": "1",
        "parameters": sampling,
    }

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield request

    pieces = []
    async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            pieces.append(text_of(result))
    assert "".join(pieces) == expected


def test_a_grpc_stream_brings_the_pieces_one_by_one(
    grpc: tritonclient.grpc.InferenceServerClient, expected: str
) -> None:
    answers: queue.Queue[tuple[Any, Any, float]] = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put((result, error, time.monotonic())))
    inputs = tensors(tritonclient.grpc, stream=True, **SAMPLING)
    grpc.async_stream_infer(TEXT, inputs, request_id="1")
    pieces: list[str] = []
    moments: list[float] = []
    final = False
    while not final:
        result, error, moment = answers.get(timeout=60)
        assert error is None
        response = result.get_response()
        assert response.id == "1"
        final = response.parameters["triton_final_response"].bool_param
        pieces.append(text_of(result))
        moments.append(moment)
    grpc.stop_stream()
    assert "".join(pieces) == expected
    assert len([piece for piece in pieces if piece]) > 5
    assert len(set(moments)) == len(moments)
    assert answers.empty()


def test_two_texts_on_one_stream_do_not_mix(
    grpc: tritonclient.grpc.InferenceServerClient, expected: str
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put((result, error)))
    schemas = {name: {"const": f"this is number {name}"} for name in ("one", "two")}
    for name, schema in schemas.items():
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        sampling = {"temperature": 0, "max_tokens": 30, "response_format": form}
        inputs = tensors(tritonclient.grpc, "Write:", stream=True, **sampling)
        grpc.async_stream_infer(TEXT, inputs, request_id=name)
    texts, order, open_ = {"one": "", "two": ""}, [], {"one", "two"}
    while open_:
        result, error = answers.get(timeout=60)
        assert error is None
        response = result.get_response()
        texts[response.id] += text_of(result)
        order.append(response.id)
        if response.parameters["triton_final_response"].bool_param:
            open_.remove(response.id)
    grpc.stop_stream()
    assert {name: json.loads(text) for name, text in texts.items()} == {
        name: schema["const"] for name, schema in schemas.items()
    }
    assert order != sorted(order), "one text was written after the other"


async def test_grpc_with_asyncio(server: Server, expected: str) -> None:
    async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:
        result = await client.infer(TEXT, tensors(tritonclient.grpc.aio, **SAMPLING))
        assert text_of(result) == expected


def test_our_client(server: Server, expected: str) -> None:
    with Client(server.grpc) as client:
        pieces = list(client.generate(TEXT, PROMPT, **SAMPLING))
        assert "".join(pieces) == expected
        assert len(pieces) > 5
        whole = client.infer(TEXT, {"text_input": np.array([PROMPT], np.object_)})
        assert whole["text_output"].shape == (1,)


async def test_our_asynchronous_client(server: Server, expected: str) -> None:
    async with AsyncClient(server.grpc) as client:
        pieces = [piece async for piece in client.generate(TEXT, PROMPT, **SAMPLING)]
    assert "".join(pieces) == expected
    assert len(pieces) > 5


def test_metadata(
    http: tritonclient.http.InferenceServerClient, grpc: tritonclient.grpc.InferenceServerClient
) -> None:
    over_http = http.get_model_metadata(TEXT)
    over_grpc = grpc.get_model_metadata(TEXT, as_json=True)
    assert over_http["name"] == over_grpc["name"] == TEXT
    inputs = {tensor["name"]: tensor["datatype"] for tensor in over_http["inputs"]}
    assert inputs == {
        "text_input": "BYTES",
        "stream": "BOOL",
        "sampling_parameters": "BYTES",
        "exclude_input_in_output": "BOOL",
    }
    assert {tensor["name"]: tensor["datatype"] for tensor in over_grpc["inputs"]} == inputs
    assert [tensor["name"] for tensor in over_http["outputs"]] == ["text_output"]
    assert http.is_model_ready(TEXT)
    assert grpc.is_model_ready(TEXT)
    config = grpc.get_model_config(TEXT).config
    assert config.name == TEXT
    assert config.model_transaction_policy.decoupled
    assert http.get_model_config(TEXT)["model_transaction_policy"] == {"decoupled": True}


WRONG = [
    ("{", "sampling_parameters is not JSON"),
    ("[1]", "sampling_parameters must be a JSON object"),
    ('{"temperature": 9}', "temperature"),
    ('{"max_tokens": 9000}', "the context is 8192 tokens"),
    ('{"temperature": "warm"}', "temperature"),
    ('{"tmperature": 1}', "tmperature is not a field"),
    ('{"n": 2}', "n must be 1"),
    ('{"prompt": "x"}', "the prompt is the input text_input"),
    ('{"logprobs": 1}', "no output for them"),
]


@pytest.mark.parametrize(("sampling", "says"), WRONG)
def test_wrong_sampling_parameters(
    http: tritonclient.http.InferenceServerClient,
    grpc: tritonclient.grpc.InferenceServerClient,
    sampling: str,
    says: str,
) -> None:
    def inputs(kind: Any) -> Any:
        found = tensors(kind, max_tokens=2)
        found[-1].set_data_from_numpy(np.array([sampling.encode()], np.object_))
        return found

    with pytest.raises(InferenceServerException, match=says) as over_http:
        http.infer(TEXT, inputs(tritonclient.http))
    assert over_http.value.status() == "400"
    with pytest.raises(InferenceServerException, match=says) as over_grpc:
        grpc.infer(TEXT, inputs(tritonclient.grpc))
    assert over_grpc.value.status() == "StatusCode.INVALID_ARGUMENT"
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put((result, error)))
    grpc.async_stream_infer(TEXT, inputs(tritonclient.grpc))
    _, error = answers.get(timeout=30)
    grpc.stop_stream()
    assert says in str(error)


def bad_tensors() -> Iterator[Any]:
    def tensor(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
        return {"name": name, "datatype": datatype, "shape": shape, "data": data}

    text = tensor("text_input", "BYTES", [1], ["hi"])
    yield [], "text_input"
    yield [tensor("text_input", "BYTES", [2], ["a", "b"])], "text_input"
    yield [tensor("text_input", "FP32", [1], [1.0])], "FP32"
    yield [text, tensor("stream", "BYTES", [1], ["x"])], "stream"
    yield [text, tensor("temperature", "FP32", [1], [0.5])], "temperature"
    yield [text, tensor("exclude_input_in_output", "BOOL", [1], [False])], "exclude_input_in_output"
    yield [tensor("text_input", "BYTES", [1], [""])], "empty"


@pytest.mark.parametrize(("inputs", "says"), list(bad_tensors()))
def test_wrong_tensors(server: Server, inputs: Any, says: str) -> None:
    answer = server.client.post(f"{server.http}/v2/models/{TEXT}/infer", json={"inputs": inputs})
    assert answer.status_code in (400, 501)
    assert says in answer.json()["error"]


def test_a_grpc_deadline_ends_the_generation(
    grpc: tritonclient.grpc.InferenceServerClient, idle: Callable[[], None]
) -> None:
    sampling = {key: ENDLESS[key] for key in ("max_tokens", "ignore_eos")}
    with pytest.raises(InferenceServerException) as caught:
        grpc.infer(TEXT, tensors(tritonclient.grpc, **sampling), client_timeout=0.5)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    idle()


def test_errors_of_our_client(server: Server) -> None:
    with Client(server.grpc) as client:
        with pytest.raises(ds_client.ClientError, match="temperature"):
            list(client.generate(TEXT, PROMPT, temperature=9))
        with pytest.raises(ds_client.ClientError, match="no model 'none'"):
            list(client.generate("none", PROMPT))
