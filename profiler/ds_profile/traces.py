"""Trace files in Triton's format, and the stages that lie between their timestamps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ds_profile.errors import ProfileError


@dataclass(frozen=True)
class Stage:
    """What happens between two timestamps. Each has the name of one protocol or another."""

    name: str
    part: str
    starts: tuple[str, ...]
    ends: tuple[str, ...]
    what: str


_READ = ("HTTP_RECV_END", "GRPC_WAITREAD_END")
_SEND = ("HTTP_SEND_START", "GRPC_SEND_START")
_SENT = ("HTTP_SEND_END", "GRPC_SEND_END")

GATEWAY, WORKER, OUTSIDE = "gateway", "worker", "outside"

STAGES = (
    Stage("receive", GATEWAY, ("HTTP_RECV_START",), ("HTTP_RECV_END",), "reading the body"),
    Stage("parse", GATEWAY, _READ, ("REQUEST_START",), "from bytes to tensors"),
    Stage("hand over", GATEWAY, ("REQUEST_START",), ("QUEUE_START",), "checks, to the worker"),
    Stage("queue", WORKER, ("QUEUE_START",), ("COMPUTE_START",), "waiting for company or a slot"),
    Stage("join", WORKER, ("COMPUTE_START",), ("COMPUTE_INPUT_END",), "copying into the batch"),
    Stage("compute", WORKER, ("COMPUTE_INPUT_END",), ("COMPUTE_OUTPUT_START",), "the engine"),
    Stage("split", WORKER, ("COMPUTE_OUTPUT_START",), ("COMPUTE_END",), "copying out of the batch"),
    Stage("hand back", GATEWAY, ("COMPUTE_END",), ("REQUEST_END",), "to the gateway"),
    Stage("encode", GATEWAY, ("REQUEST_END",), _SEND, "from tensors to bytes"),
    Stage("send", GATEWAY, _SEND, _SENT, "writing the answer"),
)
"""In the order in which a request lives through them. Over gRPC the time before the request is
read is no stage: a connection that waits for its next request counts as reading."""

NETWORK = Stage("network", OUTSIDE, (), (), "network, and the client's own work")
"""What the client waited beyond the server's own stages."""


@dataclass
class Trace:
    """One request: timestamps in nanoseconds by name."""

    model: str = ""
    version: int = -1
    request_id: str = ""
    times: dict[str, int] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        for name in ("HTTP", "GRPC"):
            if any(key.startswith(name) for key in self.times):
                return name
        return "?"

    def durations(self) -> dict[str, int]:
        """Nanoseconds by stage, of the stages whose two ends are there."""
        found: dict[str, int] = {}
        for stage in STAGES:
            start, end = self._first(stage.starts), self._first(stage.ends)
            if start is not None and end is not None:
                found[stage.name] = max(0, end - start)
        return found

    def _first(self, names: Iterable[str]) -> int | None:
        return next((self.times[name] for name in names if name in self.times), None)


def read(paths: Sequence[Path]) -> list[Trace]:
    """The traces of requests that were computed. Raises ProfileError naming the file."""
    return [trace for path in paths for trace in _read(path)]


def _read(path: Path) -> list[Trace]:
    try:
        records = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ProfileError(f"{path} is no trace file: {error}") from None
    if not isinstance(records, list):
        raise ProfileError(f"{path} is no trace file: it must hold a JSON array of traces")
    found: dict[int, Trace] = {}
    try:
        for record in records:
            _add(found, record)
    except (KeyError, TypeError, AttributeError) as error:
        raise ProfileError(
            f"{path} is no trace file: a record has no proper {error}; Triton's format has "
            '{"id", "model_name"} and {"id", "timestamps": [{"name", "ns"}]}'
        ) from None
    return [trace for trace in found.values() if "compute" in trace.durations()]


def _add(found: dict[int, Trace], record: Mapping[str, Any]) -> None:
    trace = found.setdefault(record["id"], Trace())
    if "model_name" in record:
        trace.model = record["model_name"]
        trace.version = record.get("model_version", -1)
        trace.request_id = record.get("request_id", "")
    for mark in record.get("timestamps", ()):
        trace.times[mark["name"]] = mark["ns"]
