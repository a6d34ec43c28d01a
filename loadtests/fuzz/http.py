"""Fuzzing over HTTP: schemathesis, told which models there are and what they are asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

from loadtests.fuzz import hooks
from loadtests.fuzz.outcome import Outcome

SPARE_SECONDS = 120.0
"""What schemathesis gets beyond its time to finish what it is at and to write its report."""

TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"anyOf": [{"enum": ["x", "text_input", "stream"]}, {"type": "string"}]},
        "datatype": {"enum": ["FP32", "BYTES", "INT64", "BOOL", "BF16", "FP99"]},
        "shape": {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
        "data": {"type": "array", "maxItems": 64},
        "parameters": {"type": "object"},
    },
}
INFER = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": {"type": "array", "items": TENSOR, "maxItems": 3},
        "outputs": {"type": "array", "maxItems": 3},
        "parameters": {"type": "object"},
    },
}
MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "user", "assistant", "tool", "nobody"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "null"}]},
    },
}
TEXT = {
    "max_tokens": {"type": "integer", "maximum": 8},
    "stream": {"type": "boolean"},
    "temperature": {"type": "number"},
    "top_p": {"type": "number"},
    "stop": {"anyOf": [{"type": "string"}, {"type": "array"}]},
    "response_format": {"type": "object"},
    "logprobs": {},
    "n": {},
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": {"type": "array", "items": MESSAGE, "maxItems": 3}},
    "/v1/completions": {"prompt": {"anyOf": [{"type": "string"}, {"type": "array"}]}},
    "/generate": {"text_input": {"type": "string"}, "parameters": {"type": "object"}},
    "/generate_stream": {"text_input": {"type": "string"}, "parameters": {"type": "object"}},
}
"""By the end of a path: what a request has beside what all requests for text have."""


def fuzz(
    url: str, seconds: float, seed: int, models: Sequence[str], folder: Path, over: Event
) -> Outcome:
    """Send what schemathesis finds in `seconds`; every phase of it, one request at a time."""
    (folder / "description.json").write_text(json.dumps(pointed(_description(url), models)))
    (folder / "schemathesis.toml").write_text(f'hooks = "{hooks.__name__}"\n')
    counts, report = folder / "counts.json", folder / "report.json"
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", folder / "schemathesis.toml",
        "run", folder / "description.json", "--url", url, "--max-time", f"{seconds:.0f}",
        "--seed", str(seed), "--checks", "deliberate", "--continue-on-failure", "--no-shrink",
        "--request-timeout", "60", "--generation-database", "none", "--no-color",
        "--report", "json", "--report-json-path", report,
    ]  # fmt: skip
    with ExitStack() as stack:
        printed = stack.enter_context((folder / "schemathesis.log").open("w+"))
        root = str(Path(__file__).parents[2])
        environment = os.environ | {hooks.COUNTS_FILE: str(counts), "PYTHONPATH": root}
        process = stack.enter_context(
            subprocess.Popen(
                list(map(str, command)),
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
            )
        )
        stack.callback(process.kill)
        status = _end(process, seconds + SPARE_SECONDS, over)
        printed.seek(0)
        text = printed.read()
    if not counts.exists():
        return Outcome(Counter(), [f"schemathesis ended with {status}:\n{text[-3000:]}"])
    answers = Counter({str(k): v for k, v in json.loads(counts.read_text()).items()})
    return Outcome(answers, [] if status == 0 else [f"schemathesis ended with {status}:\n{text}"])


def _end(process: subprocess.Popen[bytes], seconds: float, over: Event) -> int | None:
    """Its exit status; None where it was still at work when its time, or all, was over."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until and not over.wait(0.2):
        pass
    return process.poll()


def pointed(description: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """The description, with what it leaves open: models that exist, and bodies that nearly fit.

    Without these hardly any request gets past the question which model it is for.
    """
    name = {"anyOf": [{"enum": list(models)}, {"type": "string"}]}
    for path, methods in description["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "model":
                    parameter["schema"] = name
                if parameter["name"] == "version":
                    parameter["schema"] = {"anyOf": [{"enum": ["1"]}, {"type": "string"}]}
            if (body := _body(path, name)) and "requestBody" in operation:
                operation["requestBody"]["content"]["application/json"]["schema"] = body
    return description


def _body(path: str, name: dict[str, Any]) -> dict[str, Any] | None:
    if path.endswith("/infer"):
        return INFER
    for end, own in BODIES.items():
        if path.endswith(end):
            return {
                "type": "object",
                "required": ["model", *own, "max_tokens"],
                "properties": {"model": name, **own, **TEXT},
            }
    return None


def _description(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
