"""Traces of text requests, over every way that leads to a text model."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.grpc as triton_grpc
from collecting import Collector, attributes
from serving import Server, until
from texts import TEXT

pytestmark = pytest.mark.slow

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
TRACED = {"traceparent": PARENT}
SAMPLING: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
PROMPT = "The capital of France is"
MIDDLE = ["REQUEST_START", "INFER_RESPONSE_COMPLETE"]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text-traces")


@pytest.fixture(scope="module")
def traced(collector: Collector, folder: Path, gguf: Path) -> Iterator[Server]:
    flags = ["--otlp-endpoint", collector.address, "--trace-file", folder / "trace.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with Server("--model", TEXT, *flags, "--trace-rate", "1000000") as server:
            yield server


def names(folder: Path, request_id: str) -> list[str]:
    """Of the times of that request's trace, which must be in order."""
    path = folder / "trace.json"
    ids: dict[str, int] = {}

    def there() -> bool:
        records = json.loads(path.read_text())
        ids.update({each["request_id"]: each["id"] for each in records if "model_name" in each})
        return request_id in ids

    until(there, "the trace is not written", 10)
    records = json.loads(path.read_text())
    (times,) = (
        each["timestamps"]
        for each in records
        if each["id"] == ids[request_id] and "timestamps" in each
    )
    values = [mark["ns"] for mark in times]
    assert values == sorted(values)
    return [mark["name"] for mark in times]


def check_span(collector: Collector, request_id: str) -> None:
    until(lambda: bool(collector.roots(id=request_id)), "no span came", 10)
    (root,) = collector.roots(id=request_id)
    assert root.trace_id.hex() == TRACE
    assert root.parent_span_id.hex() == PARENT.split("-")[2]
    assert attributes(root)["model_name"] == TEXT
    below = {span.name for span in collector.below(root)}
    assert below == {"first_answer", "more_answers"}


HTTP = ["HTTP_RECV_START", "HTTP_RECV_END", *MIDDLE]


@pytest.mark.parametrize("stream", [False, True])
def test_openai(traced: Server, collector: Collector, folder: Path, stream: bool) -> None:
    name = f"openai-{stream}"
    with openai.OpenAI(base_url=f"{traced.http}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(
            model=TEXT, prompt=PROMPT, stream=stream, **SAMPLING,
            extra_headers=TRACED | {"x-request-id": name},
        )  # fmt: skip
        if stream:
            assert len(list(answer)) > 3
    assert names(folder, name) == [*HTTP, "HTTP_SEND_START", "REQUEST_END", "HTTP_SEND_END"]
    check_span(collector, name)


@pytest.mark.parametrize("kind", ["generate", "generate_stream"])
def test_generate(traced: Server, collector: Collector, folder: Path, kind: str) -> None:
    body = {"id": kind, "text_input": PROMPT, **SAMPLING}
    answer = traced.client.post(f"{traced.http}/v2/models/{TEXT}/{kind}", json=body, headers=TRACED)
    assert answer.status_code == 200
    ended = ["REQUEST_END", "HTTP_SEND_START"]
    if kind == "generate_stream":
        ended.reverse()
    assert names(folder, kind) == [*HTTP, *ended, "HTTP_SEND_END"]
    check_span(collector, kind)


@pytest.mark.parametrize("stream", [False, True])
def test_grpc(traced: Server, collector: Collector, folder: Path, stream: bool) -> None:
    name = f"grpc-{stream}"
    values = {"text_input": PROMPT, "sampling_parameters": json.dumps(SAMPLING)}
    inputs = []
    for key, text in values.items():
        inputs.append(triton_grpc.InferInput(key, [1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([text.encode()], np.object_))
    inputs.append(triton_grpc.InferInput("stream", [1], "BOOL"))
    inputs[-1].set_data_from_numpy(np.array([stream]))
    with triton_grpc.InferenceServerClient(traced.grpc) as client:
        if not stream:
            client.infer(TEXT, inputs, request_id=name, headers=TRACED)
        else:
            answers: queue.Queue[Any] = queue.Queue()
            client.start_stream(lambda result, error: answers.put((result, error)), headers=TRACED)
            client.async_stream_infer(TEXT, inputs, request_id=name)
            while True:
                result, error = answers.get(timeout=30)
                assert error is None
                if result.get_response().parameters["triton_final_response"].bool_param:
                    break
            client.stop_stream()
    ended = ["REQUEST_END", "GRPC_SEND_START"]
    if stream:
        ended.reverse()
    begun = ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", *MIDDLE]
    assert names(folder, name) == [*begun, *ended, "GRPC_SEND_END"]
    check_span(collector, name)


def test_a_refused_request_over_a_stream_is_a_span(traced: Server, collector: Collector) -> None:
    inputs = [triton_grpc.InferInput("text_input", [1], "BYTES")]
    inputs[0].set_data_from_numpy(np.array([b"\xff"], np.object_))
    answers: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(traced.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers=TRACED)
        client.async_stream_infer(TEXT, inputs)
        assert "not UTF-8" in str(answers.get(timeout=30)[1])
        client.stop_stream()
    until(
        lambda: any("not UTF-8" in span.status.message for span in collector.roots()),
        "no span came",
        10,
    )


def test_callers_that_do_not_trace_are_not_traced(
    traced: Server, collector: Collector, folder: Path
) -> None:
    untraced = {"traceparent": PARENT[:-1] + "0", "x-request-id": "untraced"}
    body = {"model": TEXT, "prompt": PROMPT, **SAMPLING}
    for headers in (untraced, TRACED | {"x-request-id": "after"}):
        answer = traced.client.post(f"{traced.http}/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200
    check_span(collector, "after")
    assert collector.roots(id="untraced") == []
    assert "untraced" not in (folder / "trace.json").read_text()
