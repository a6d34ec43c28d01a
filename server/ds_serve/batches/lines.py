"""The lines of a batch: what is asked, and what is answered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson

from ds_engines.errors import InvalidRequest

MOST = 50_000
"""Lines of one batch."""

TOLD = 100
"""Errors of a file that its owner is told of."""


class Line(msgspec.Struct):
    """One request. `number` counts from 1."""

    number: int
    custom_id: str
    body: dict[str, Any]


class _Written(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


def read(path: Path, endpoint: str) -> Iterator[Line | tuple[int, str]]:
    """Each line, or its number and what is wrong with it. Empty lines are passed over."""
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            if number > MOST:
                yield number, f"a batch has {MOST:,} lines at most"
                return
            try:
                yield _line(number, text, endpoint, seen)
            except InvalidRequest as error:
                yield number, str(error)


def _line(number: int, text: bytes, endpoint: str, seen: set[str]) -> Line:
    try:
        written = msgspec.json.decode(text, type=_Written)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"it must have custom_id, method, url and body: {error}") from None
    if written.method != "POST" or written.url != endpoint:
        raise InvalidRequest(f"it is for {written.method} {written.url}, not POST {endpoint}")
    if not isinstance(written.body.get("model"), str):
        raise InvalidRequest("its body names no model")
    if written.body.get("stream"):
        raise InvalidRequest("its body asks for a stream, which a batch has not")
    if written.custom_id in seen:
        raise InvalidRequest(f"custom_id {written.custom_id!r} is that of a line before")
    seen.add(written.custom_id)
    return Line(number, written.custom_id, written.body)


def errors_of(path: Path, endpoint: str) -> tuple[int, dict[str, Any] | None]:
    """How many lines a file has, and what is wrong with them in OpenAI's shape."""
    wrong: list[dict[str, object]] = []
    count = 0
    for line in read(path, endpoint):
        if isinstance(line, Line):
            count += 1
        elif len(wrong) < TOLD:
            wrong.append(_error("invalid_line", *line))
    if not wrong and not count:
        wrong.append(_error("empty_file", None, "the file has no lines"))
    return count, {"object": "list", "data": wrong} if wrong else None


def _error(code: str, line: int | None, message: str) -> dict[str, object]:
    return {"code": code, "line": line, "message": message, "param": None}


def answered(id: str, custom_id: str, status: int, request_id: str, body: object) -> bytes:
    """The line of an answer."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    said = {"id": id, "custom_id": custom_id, "response": response, "error": None}
    return orjson.dumps(said) + b"\n"


def failed(id: str, custom_id: str, code: str, message: str) -> bytes:
    """The line of a request that was not answered."""
    error = {"code": code, "message": message}
    said = {"id": id, "custom_id": custom_id, "response": None, "error": error}
    return orjson.dumps(said) + b"\n"


def done(path: Path) -> set[str]:
    """The custom ids of the answers in a file. A line that a crash has cut in two is taken out."""
    if not path.exists():
        return set()
    found, end = set(), 0
    with path.open("rb") as file:
        for text in file:
            try:
                found.add(str(orjson.loads(text)["custom_id"]))
            except (ValueError, KeyError, TypeError):
                break
            if not text.endswith(b"\n"):
                break
            end += len(text)
    os.truncate(path, end)
    return found
