"""What the server prints and what the README says, executed as written."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from serving import READY, Server, children, gone, until
from texts import ENDLESS, PARIS, TEXT

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


def run(*command: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl(server: Server, path: str, body: dict[str, Any], *options: str) -> str:
    return run(
        "curl", "-sS", *options, f"{server.http}{path}", "-H", "Content-Type: application/json",
        "-d", json.dumps(body),
    )  # fmt: skip


def printed_example(server: Server) -> tuple[str, str]:
    """The curl command and the Python code that stand below "Try it:"."""
    example = textwrap.dedent(server.output().partition("Try it:\n")[2]).strip()
    command, _, code = example.partition("\n\n")
    return command, code


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def here(server: Server, text: str) -> str:
    """The text with the server's ports in place of the default ones."""
    http, grpc = server.http.rpartition(":")[2], server.grpc.rpartition(":")[2]
    found = text.replace("127.0.0.1:8000", f"127.0.0.1:{http}")
    found = found.replace("127.0.0.1:8001", f"127.0.0.1:{grpc}")
    assert found != text
    return found


def test_the_curl_command_that_the_server_prints(server: Server) -> None:
    command, _ = printed_example(server)
    assert command.startswith("curl http://")
    answer = json.loads(run("bash", "-c", command))
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_the_python_code_that_the_server_prints(server: Server) -> None:
    _, code = printed_example(server)
    assert code.startswith("from openai import OpenAI")
    assert "Paris" in run(sys.executable, "-W", "error", "-c", code)


def test_the_readme_s_curl_command(server: Server) -> None:
    (command,) = [block for block in readme_blocks("") if block.startswith("curl")]
    answer = json.loads(run("bash", "-c", here(server, command)))
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_the_readme_s_chat(server: Server) -> None:
    (code,) = [block for block in readme_blocks("python") if "openai" in block]
    assert "Paris" in run(sys.executable, "-c", here(server, code))


def test_the_readme_s_tensor_request(server: Server) -> None:
    (code,) = [block for block in readme_blocks("python") if "tritonclient" in block]
    assert run(sys.executable, "-c", here(server, code)).strip() == "markdown"


def test_the_readme_s_server_in_python(tmp_path: Path) -> None:
    (code,) = [block for block in readme_blocks("python") if "import InferenceServer" in block]
    script = tmp_path / "serve.py"
    script.write_text(code.replace("port=8000", "port=0, grpc_port=0"))
    assert script.read_text() != code
    output = tmp_path / "output"
    with output.open("wb") as stdout, (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, script], stdout=stdout, stderr=log)
    try:
        until(lambda: READY.search(output.read_text()) is not None, "not ready", 60)
        family = children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert len(family) == 3  # a worker and two gateways
    assert all(gone(pid) for pid in family)


def test_curl_streams_as_the_text_is_written(server: Server) -> None:
    """Pieces come while the model is still writing: curl's first line is there before its last."""
    body = ENDLESS | {"max_tokens": 40, "stream": True}
    command = ["curl", "-sSN", f"{server.http}/v1/completions", "-d", json.dumps(body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        arrived = [(time.monotonic(), line.strip()) for line in process.stdout]
    assert process.returncode == 0
    lines = [line for _, line in arrived if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 30
    assert arrived[0][0] < arrived[-1][0]
    moments = {round(moment, 2) for moment, _ in arrived}
    assert len(moments) > 5


def test_curl_sees_the_headers_of_a_stream(server: Server) -> None:
    head, _, _ = curl(server, "/v1/chat/completions", PARIS | {"stream": True}, "-Ni").partition(
        "\r\n\r\n"
    )
    assert head.startswith("HTTP/1.1 200")
    assert "content-type: text/event-stream" in head.lower()
    assert "x-request-id: " in head.lower()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[1]", "must be a JSON object"),
        ("{}", "'model'"),
        ('{"model": 7}', "'model'"),
        (json.dumps({"model": TEXT}), "is required"),
    ],
)
def test_a_body_that_is_no_request(server: Server, path: str, body: str, says: str) -> None:
    answer = run("curl", "-sS", "-w", "\n%{http_code}", f"{server.http}{path}", "-d", body)
    text, _, status = answer.rpartition("\n")
    error = json.loads(text)["error"]
    assert status == "400"
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/completions", 405),
    ],
)
def test_a_path_that_is_not_there(server: Server, method: str, path: str, status: int) -> None:
    body = {"model": TEXT, "input": "x"} if method == "POST" else None
    answer = server.client.request(method, server.http + path, json=body)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert path in answer.json()["error"]["message"]
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)
    if (method, status) == ("POST", 404):
        assert "has /v1/chat/completions" in answer.json()["error"]["message"]


def test_the_openapi_page_names_the_inference_paths(server: Server) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v2/models/{model}/infer"} <= paths.keys()
