"""Traces: when single requests went through which stage, in Triton's file format and vocabulary.

A trace is begun by a front-end, carried by the request, and kept once it is answered. The trace
file is one JSON array which all gateways extend in place, so that it can be read at any time.
Times are nanoseconds of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from ds_engines.errors import ConfigError
from ds_engines.spec import ModelSpec
from ds_serve.spans import PARENT, below, sampled

if TYPE_CHECKING:
    from ds_serve.otlp import Spans

log = logging.getLogger(__name__)

OFF, TIMESTAMPS = "OFF", "TIMESTAMPS"

WRITE_SECONDS = 0.5
"""How long a trace waits at most before it is in the file."""

IN_WORKER = (
    "QUEUE_START",
    "COMPUTE_START",
    "COMPUTE_INPUT_END",
    "COMPUTE_OUTPUT_START",
    "COMPUTE_END",
)
"""What the times of a worker's answer are called, in order."""

FIRST_ANSWER = "INFER_RESPONSE_COMPLETE"
"""Of a text: its first piece is there; REQUEST_END is when the last one is."""

_TAIL = 4096
_ID = re.compile(rb'^\{"id":(\d+),', re.MULTILINE)


class TraceSettings(msgspec.Struct, frozen=True):
    """Triton's trace settings, by Triton's names, and where OpenTelemetry's spans go.

    One of `trace_rate` requests is traced, until `trace_count` were (-1: without end). With a
    `log_frequency` of N above 0, each N traces make a file of their own, `trace_file`.0 and so on.
    """

    trace_file: str = ""
    trace_level: str = OFF
    trace_rate: int = 1000
    trace_count: int = -1
    log_frequency: int = 0
    otlp_endpoint: str = ""

    @property
    def on(self) -> bool:
        where = self.trace_file or self.otlp_endpoint
        return bool(self.trace_level == TIMESTAMPS and where and self.trace_count)


class Trace:
    """One request's times. `parent`: the caller's span, as the header `traceparent` has it; `own`:
    this request's, where others were told of it. `is_span`: it will be one for certain.
    """

    __slots__ = ("error", "is_span", "model", "own", "parent", "request_id", "times", "version")

    def __init__(self, first: str, parent: str = "", *, is_span: bool = False) -> None:
        self.model = self.version = self.request_id = self.error = self.own = ""
        self.parent = parent
        self.is_span = is_span
        self.times: list[tuple[str, int]] = []
        self.mark(first)

    def mark(self, name: str) -> None:
        """`name` happens now."""
        self.times.append((name, time.monotonic_ns()))

    def passed_on(self) -> dict[str, str]:
        """Headers that name the span below which a worker's own are to be."""
        if self.is_span and not self.own:
            self.own = below(self.parent)
        named = self.own or self.parent
        return {PARENT: named} if named else {}

    def answered(self, spec: ModelSpec, request_id: str, in_worker: Sequence[int]) -> None:
        """The worker's answer is there, with the times named by IN_WORKER."""
        self.times.extend(zip(IN_WORKER, in_worker, strict=True))
        self.ended(spec, request_id)

    def ended(self, spec: ModelSpec, request_id: str) -> None:
        """The last answer is there."""
        self.model, self.version, self.request_id = spec.name, spec.version, request_id
        self.mark("REQUEST_END")

    def told(self, spec: ModelSpec, request_id: str, *, final: bool) -> None:
        """An answer is there that has no times of its own; `final`: none follows."""
        if self.times[-1][0] == "REQUEST_START":
            self.mark(FIRST_ANSWER)
        if final:
            self.ended(spec, request_id)

    def failed(self, model: str, version: str, error: str) -> None:
        """The request was refused, or failed."""
        self.model, self.version, self.error = model, version, error


class Sampler:
    """Says which requests are traced by its settings."""

    def __init__(self, settings: TraceSettings) -> None:
        self.settings = settings
        self.on = settings.on
        self._seen = 0
        self._left = settings.trace_count

    def picks(self) -> bool:
        """Whether this request's turn has come."""
        self._seen += 1
        if not self.on or self._seen % self.settings.trace_rate:
            return False
        self._left -= 1
        self.on = self._left != 0
        return True


class Tracer:
    """Picks the requests to trace and writes their traces. `on` is all that others cost.

    Where some models have settings of their own, every request is timed, and only when it is
    answered is it clear which settings hold for it.
    """

    def __init__(self, settings: TraceSettings | None = None) -> None:
        self._waiting: dict[TraceSettings, list[Trace]] = {}
        self._spans: dict[str, Spans] = {}
        self.update(settings or TraceSettings())

    def update(
        self, settings: TraceSettings, models: Mapping[str, TraceSettings] | None = None
    ) -> None:
        """Trace by these settings from now on, `models` by their own."""
        self.flush()
        self._sampler = Sampler(settings)
        self._models = {name: Sampler(own) for name, own in (models or {}).items()}
        self.on = self._any_on()

    def begin(self, first: str, parent: str = "") -> Trace | None:
        """A trace for each request whose turn it is; `first` is what happens to it now.

        Where spans are sent, a `parent` that says whether it is traced decides for its request.
        """
        if self._models:
            return Trace(first, parent)
        if not self._picks(self._sampler, parent):
            return None
        self.on = self._sampler.on
        return Trace(first, parent, is_span=bool(self._sampler.settings.otlp_endpoint))

    def keep(self, trace: Trace) -> None:
        """Write the trace within WRITE_SECONDS. One that no worker answered is dropped."""
        if not trace.model:
            return
        sampler = self._models.get(trace.model, self._sampler)
        if self._models:
            if not self._picks(sampler, trace.parent):
                return
            self.on = self._any_on()
        if sampler.settings.otlp_endpoint:
            self._spans_to(sampler.settings.otlp_endpoint).keep(trace)
        if sampler.settings.trace_file and not trace.error:
            self._keep_in_file(sampler, trace)

    def _keep_in_file(self, sampler: Sampler, trace: Trace) -> None:
        waiting = self._waiting.setdefault(sampler.settings, [])
        waiting.append(trace)
        each = sampler.settings.log_frequency
        if each and len(waiting) >= each:
            self._flush_aside()
        elif not each and len(waiting) == 1:
            asyncio.get_running_loop().call_later(WRITE_SECONDS, self._flush_aside)

    def close(self) -> None:
        """Write and send what is there."""
        self.flush()
        for spans in self._spans.values():
            spans.close()
        self._spans = {}

    def flush(self) -> None:
        """Write what is there."""
        for settings, traces in self._take():
            self._write(settings, traces)

    @staticmethod
    def _picks(sampler: Sampler, parent: str) -> bool:
        said = sampled(parent) if parent and sampler.settings.otlp_endpoint else None
        return sampler.picks() if said is None else said and sampler.on

    def _spans_to(self, endpoint: str) -> Spans:
        if endpoint not in self._spans:
            from ds_serve.otlp import Spans  # noqa: PLC0415

            self._spans[endpoint] = Spans(endpoint)
        return self._spans[endpoint]

    def _any_on(self) -> bool:
        return self._sampler.on or any(sampler.on for sampler in self._models.values())

    def _take(self) -> list[tuple[TraceSettings, list[Trace]]]:
        waiting, self._waiting = self._waiting, {}
        return list(waiting.items())

    def _flush_aside(self) -> None:
        """`flush` in another thread: a disk may take its time."""
        for settings, traces in self._take():
            asyncio.get_running_loop().run_in_executor(None, self._write, settings, traces)

    def _write(self, settings: TraceSettings, traces: list[Trace]) -> None:
        path = settings.trace_file
        try:
            append(_numbered(path) if settings.log_frequency else Path(path), traces)
        except OSError as error:
            self.on = False
            log.error("tracing ends: %s cannot be written: %s", path, error.strerror)


def create(path: Path) -> None:
    """Empty the trace file. Raises ConfigError where it cannot be written."""
    try:
        path.write_bytes(b"[\n]\n")
    except OSError as error:
        raise ConfigError(f"--trace-file {path} cannot be written: {error.strerror}") from None


def append(path: Path, traces: Iterable[Trace]) -> None:
    """Add traces to the array in the file, numbered on from its last; made where it is missing.

    Other processes may do the same at the same time. Raises OSError.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        numbers = _ID.findall(file.read())
        first = int(numbers[-1]) + 1 if numbers else 1
        lines = [orjson.dumps(r) for n, t in enumerate(traces, first) for r in _records(n, t)]
        # Over the bracket that ends the array goes the rest of it, in a single write.
        file.seek(size - len(b"\n]\n") if numbers else 0)
        file.write((b",\n" if numbers else b"[\n") + b",\n".join(lines) + b"\n]\n")


def _records(number: int, trace: Trace) -> tuple[dict[str, Any], dict[str, Any]]:
    version = int(trace.version) if trace.version.isdecimal() else -1
    about: dict[str, Any] = {"id": number, "model_name": trace.model, "model_version": version}
    if trace.request_id:
        about["request_id"] = trace.request_id
    times = [{"name": name, "ns": ns} for name, ns in trace.times]
    return about, {"id": number, "timestamps": times}


def _numbered(path: str) -> Path:
    """The first of `path`.0, `path`.1 and so on that was not there; it is now."""
    for number in count():
        numbered = Path(f"{path}.{number}")
        try:
            numbered.touch(exist_ok=False)
        except FileExistsError:
            continue
        return numbered
    raise AssertionError("count() has no end")
