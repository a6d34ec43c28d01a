"""SmolLM2 behind ds-serve, asked as its users do: chats, streams, tools, schemas, gRPC."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from loadtests.vllm import asking
from loadtests.vllm.plan import Plan
from loadtests.vllm.servers import Running, ds_serve

NAME = "smollm2"
CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "country": {"type": "string", "maxLength": 20},
        # A small model might never end a number.
        "population": {"type": "integer", "minimum": 0, "maximum": 99_999_999},
    },
    "required": ["city", "country", "population"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def run(plan: Plan) -> dict[str, Any]:
    flags = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    if plan.place.device == "cuda":
        # What is asked is whether it is right: the start is quicker without captured graphs.
        flags += ["--gpu-memory-utilization", "0.3", "--enforce-eager"]
    with ds_serve(plan.place, NAME, plan.smollm2, ("--max-seq-len", "2048"), flags) as server:
        checks: dict[str, Callable[[Running], str]] = {
            "chat": chat,
            "stream": stream,
            "tools": tools,
            "json_schema": json_schema,
            "logprobs": logprobs,
            "tokenize": tokenize,
            "responses": responses,
            "metrics": metrics,
            "openai package": openai_package,
            "gRPC": grpc,
            "gRPC stream": grpc_stream,
        }
        found = {name: _tried(check, server) for name, check in checks.items()}
        return {"start_s": round(server.started, 1), "checks": found}


def _tried(check: Callable[[Running], str], server: Running) -> dict[str, Any]:
    """One check's outcome: what was answered, or what went wrong."""
    try:
        return {"good": True, "said": check(server)}
    except Missing as error:
        return {"good": None, "said": str(error)}
    except Exception as error:
        return {"good": False, "said": f"{type(error).__name__}: {error}"[:500]}


class Missing(Exception):
    """A package that the check needs is not on this machine."""


class Wrong(Exception):
    """An answer that is not what was asked for."""


def _require(holds: bool, said: object) -> None:
    if not holds:
        raise Wrong(str(said)[:300])


def chat(server: Running) -> str:
    text = _chat(server, messages=CAPITAL)["message"]["content"]
    _require("Paris" in text, text)
    return str(text)


def stream(server: Running) -> str:
    whole = _chat(server, messages=CAPITAL)["message"]["content"]
    seen = asking.stream(server.port, "/v1/chat/completions", _body(messages=CAPITAL))
    _require(not seen.error and seen.text == whole and seen.pieces > 1, seen)
    return f"{seen.pieces} pieces, the first after {1000 * seen.first:.0f} ms: {seen.text}"


def tools(server: Running) -> str:
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    chosen = {"type": "function", "function": {"name": "get_weather"}}
    (call,) = _chat(server, messages=asked, tools=[TOOL], tool_choice=chosen)["message"][
        "tool_calls"
    ]
    given = json.loads(call["function"]["arguments"])
    _require(call["function"]["name"] == "get_weather" and set(given) == {"city"}, call)
    required = _chat(server, messages=asked, tools=[TOOL], tool_choice="required")["message"]
    _require(bool(required["tool_calls"]), required)
    return f"get_weather({given})"


def json_schema(server: Running) -> str:
    shape = {"name": "city", "schema": SCHEMA, "strict": True}
    asked = [{"role": "user", "content": "Tell me of Paris as JSON."}]
    text = _chat(
        server,
        messages=asked,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": shape},
    )["message"]["content"]
    found = json.loads(text)
    _require(set(found) == set(SCHEMA["required"]) and isinstance(found["population"], int), found)
    return str(text)


def logprobs(server: Running) -> str:
    choice = _chat(server, messages=CAPITAL, logprobs=True, top_logprobs=2, max_tokens=4)
    content = choice["logprobs"]["content"]
    _require(len(content) == 4 and all(len(each["top_logprobs"]) == 2 for each in content), choice)
    return str([round(each["logprob"], 3) for each in content])


def tokenize(server: Running) -> str:
    for path in ("/tokenize", "/v1/tokenize"):
        try:
            found = asking.post(server.port, path, {"model": NAME, "prompt": "Hello world"})
            return f"{path}: {found['tokens']}"
        except asking.Refused as error:
            said = str(error)
    raise Wrong(said)


def responses(server: Running) -> str:
    found = asking.post(
        server.port,
        "/v1/responses",
        {"model": NAME, "input": "Say hello.", "max_output_tokens": 8, "store": False},
    )
    return str(found["output"][-1])[:200]


def metrics(server: Running) -> str:
    import urllib.request

    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE vllm:")]
    _require(len(families) == len(set(families)) > 0, families)
    _require(f'model="{NAME}"' in text, "no label model")
    return f"{len(families)} families vllm:*"


def openai_package(server: Running) -> str:
    if find_spec("openai") is None:
        raise Missing("the package openai is not installed here")
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(model=NAME, messages=CAPITAL, temperature=0)  # type: ignore[arg-type]
    text = answer.choices[0].message.content or ""
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(  # type: ignore[call-overload]
            model=NAME, messages=CAPITAL, temperature=0, stream=True
        )
        if chunk.choices
    ]
    _require("".join(pieces) == text and "Paris" in text, (text, pieces))
    return f"openai {openai.__version__}: {text}"


def grpc(server: Running) -> str:
    """Through KServe v2: with tritonclient where it is installed, else with ds_client."""
    if find_spec("tritonclient") is not None:
        return _triton(server)
    if find_spec("grpc") is None:
        raise Missing("neither tritonclient nor grpcio is installed here")
    import numpy as np

    from ds_client import Client

    prompt = np.array(["The capital of France is"], dtype=np.object_)
    sampling = np.array([json.dumps({"max_tokens": 12, "temperature": 0})], dtype=np.object_)
    with Client(f"127.0.0.1:{server.grpc}", timeout=120) as client:
        found = client.infer(NAME, {"text_input": prompt, "sampling_parameters": sampling})
    text = str(found["text_output"].item())
    _require(bool(text), "no text")
    return f"ds_client: {text}"


def grpc_stream(server: Running) -> str:
    if find_spec("grpc") is None:
        raise Missing("grpcio is not installed here")
    from ds_client import Client

    with Client(f"127.0.0.1:{server.grpc}", timeout=120) as client:
        asked = client.generate(NAME, "The capital of France is", max_tokens=12, temperature=0)
        pieces = list(asked)
    _require(len(pieces) > 1, pieces)
    return f"ds_client: {len(pieces)} pieces: {''.join(pieces)}"


def _triton(server: Running) -> str:
    import numpy as np
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        text = triton.InferInput("text_input", [1], "BYTES")
        text.set_data_from_numpy(np.array([b"The capital of France is"], dtype=object))
        sampling = triton.InferInput("sampling_parameters", [1], "BYTES")
        wanted = json.dumps({"max_tokens": 12, "temperature": 0}).encode()
        sampling.set_data_from_numpy(np.array([wanted], dtype=object))
        answer = client.infer(NAME, [text, sampling])
        said = answer.as_numpy("text_output")[0].decode()
    _require(bool(said), "no text")
    return f"tritonclient: {said}"


def _body(**fields: Any) -> dict[str, Any]:
    return {"model": NAME, "temperature": 0, "max_tokens": 60, **fields}


def _chat(server: Running, **fields: Any) -> dict[str, Any]:
    found = asking.post(server.port, "/v1/chat/completions", _body(**fields))
    choice: dict[str, Any] = found["choices"][0]
    return choice
