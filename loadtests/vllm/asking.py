"""A small OpenAI client on the standard library: a GPU machine may have no other."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

SECONDS = 300.0


class Refused(Exception):
    """An answer that is an error: its status, and what it says."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"status {status}: {said[:400]}")
        self.status = status


def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer's JSON. Raises Refused, OSError."""
    return _exchange(port, path, json.dumps(body).encode(), "application/json")


def upload(port: int, path: str, fields: dict[str, str], file: bytes, name: str) -> dict[str, Any]:
    """A form with a file in it. Raises Refused, OSError."""
    mark = "ds-serve-form"
    parts = [
        f'--{mark}\r\ncontent-disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    parts.append(
        f'--{mark}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n'
        "content-type: audio/wav\r\n\r\n".encode()
        + file
        + b"\r\n"
    )
    body = b"".join(parts) + f"--{mark}--\r\n".encode()
    return _exchange(port, path, body, f"multipart/form-data; boundary={mark}")


def _exchange(port: int, path: str, body: bytes, kind: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("POST", path, body, {"content-type": kind})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise Refused(answer.status, said.decode(errors="replace"))
        found: dict[str, Any] = json.loads(said)
        return found
    finally:
        connection.close()


@dataclass
class Streamed:
    """What came of a streamed answer. Times in seconds from the request's start."""

    text: str = ""
    pieces: int = 0
    first: float = 0.0
    ended: float = 0.0
    error: str = ""
    finish: str = ""
    usage: dict[str, Any] = field(default_factory=dict)


def stream(port: int, path: str, body: dict[str, Any]) -> Streamed:
    """A streamed chat or completion; an error within the stream is in `error`. Raises Refused."""
    seen, began = Streamed(), time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        head = {"content-type": "application/json"}
        connection.request("POST", path, json.dumps(body | {"stream": True}), head)
        answer = connection.getresponse()
        if answer.status != 200:
            raise Refused(answer.status, answer.read().decode(errors="replace"))
        for line in answer:
            if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                _note(seen, json.loads(data), time.monotonic() - began)
    except (http.client.HTTPException, OSError) as error:
        seen.error = seen.error or f"{type(error).__name__}: {error}"
    finally:
        seen.ended = time.monotonic() - began
        connection.close()
    return seen


def _note(seen: Streamed, event: dict[str, Any], now: float) -> None:
    if "error" in event:
        said = event["error"]
        seen.error = str(said.get("message", said) if isinstance(said, dict) else said)
    if event.get("usage"):
        seen.usage = event["usage"]
    for choice in event.get("choices", ()):
        piece = (choice.get("delta") or {}).get("content") or choice.get("text")
        if piece:
            seen.first = seen.first or now
            seen.pieces += 1
            seen.text += piece
        seen.finish = choice.get("finish_reason") or seen.finish


def arrivals(port: int, path: str, body: dict[str, Any], done: threading.Event) -> list[float]:
    """When each event of a streamed answer came, until its end, or until `done` is set."""
    found: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        head = {"content-type": "application/json"}
        connection.request("POST", path, json.dumps(body | {"stream": True}), head)
        for line in connection.getresponse():
            if line.startswith(b"data:"):
                found.append(time.monotonic())
            if done.is_set():
                break
    finally:
        connection.close()
    return found
