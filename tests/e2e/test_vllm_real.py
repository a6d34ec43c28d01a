"""A real vLLM behind ds-serve, where DS_VLLM_PYTHON names an interpreter that has one.

The model is the Hugging Face folder that DS_VLLM_MODEL names; SmolLM2-135M-Instruct is enough.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Server

from ds_client import Client

PYTHON, MODEL = os.environ.get("DS_VLLM_PYTHON", ""), os.environ.get("DS_VLLM_MODEL", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (PYTHON and Path(MODEL, "config.json").is_file()),
        reason="DS_VLLM_PYTHON names no interpreter with vLLM, or DS_VLLM_MODEL no model's folder",
    ),
]
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
    "required": ["name", "large"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    flags = ["--engine", "vllm", "--max-seq-len", "1024", "--", "--enforce-eager"]
    flags += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    server = Server("--model", f"chat={MODEL}", "--gateways", "1", *flags)
    try:
        yield server.start().wait_ready(600)
    finally:
        server.close()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_its_start_was_told(server: Server) -> None:
    for step in ("starting the engine", "loading weights", "asking for a first token"):
        assert f"model chat: {step}" in server.log()


def test_a_stream_is_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "chat", "messages": QUESTION, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**asked, max_tokens=24).choices[0].message.content
    stream = client.chat.completions.create(**asked, max_tokens=24, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == whole
    assert len(pieces) > 2


def test_an_answer_has_the_schema_that_is_asked_for(client: openai.OpenAI) -> None:
    shape: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    answer = client.chat.completions.create(
        model="chat", messages=QUESTION, response_format=shape, max_tokens=100, temperature=0
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert found.keys() == {"name", "large"}
    assert isinstance(found["large"], bool)


def test_a_tool_is_called(client: openai.OpenAI) -> None:
    tool: Any = {
        "type": "function",
        "function": {"name": "look", "strict": True, "parameters": CITY},
    }
    answer = client.chat.completions.create(
        model="chat", messages=QUESTION, tools=[tool], max_tokens=100, temperature=0,
        tool_choice={"type": "function", "function": {"name": "look"}},
    )  # fmt: skip
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name == "look"
    assert json.loads(call.function.arguments).keys() == {"name", "large"}


def test_a_wrong_request_is_vllms_to_refuse(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="1024"):
        client.completions.create(model="chat", prompt=[1] * 2000, max_tokens=1)


def test_it_answers_over_grpc(server: Server) -> None:
    prompt = np.array(["The capital of France is"], dtype=np.object_)
    sampling = np.array([json.dumps({"max_tokens": 4, "temperature": 0})], dtype=np.object_)
    with Client(server.grpc) as client:
        found = client.infer("chat", {"text_input": prompt, "sampling_parameters": sampling})
        pieces = list(client.generate("chat", "The capital of France is", max_tokens=4))
    assert found["text_output"].item()
    assert len(pieces) == 4


def test_its_metrics_are_among_the_servers(server: Server) -> None:
    text = server.get("/metrics").text
    families = [each.name for each in text_string_to_metric_families(text)]
    assert len(families) == len(set(families))
    assert sum(name.startswith("vllm:") for name in families) > 20
    assert server.metric("vllm:generation_tokens_total", model="chat") > 0
    assert server.metric("vllm:num_requests_running", model="chat") == 0
