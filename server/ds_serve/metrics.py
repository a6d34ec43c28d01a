"""Metrics of all processes, kept in files that any gateway can add up.

prometheus_client's multiprocess mode: every process writes its own memory-mapped files in
PROMETHEUS_MULTIPROC_DIR, so a count survives the death of the process that counted. The library
looks for that folder once, when this module is imported: the supervisor sets it before.
"""

from __future__ import annotations

import asyncio
import os
import re
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from ds_serve import metric_files

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

MODEL = ("model", "version")

request_success = Counter("nv_inference_request_success", "Requests answered.", MODEL)
request_failure = Counter(
    "nv_inference_request_failure", "Requests that failed, by reason.", (*MODEL, "reason")
)
inference_count = Counter("nv_inference_count", "Rows run through the model.", MODEL)
execution_count = Counter("nv_inference_exec_count", "Batches run through the model.", MODEL)
pending = Gauge(
    "nv_inference_pending_request_count",
    "Requests that wait for the engine.",
    MODEL,
    multiprocess_mode="livesum",
)
request_us = Counter(
    "nv_inference_request_duration_us", "Time from arrival to answer, microseconds.", MODEL
)
queue_us = Counter("nv_inference_queue_duration_us", "Time in the queue, microseconds.", MODEL)
input_us = Counter(
    "nv_inference_compute_input_duration_us",
    "Time of requests while inputs are joined, microseconds.",
    MODEL,
)
infer_us = Counter(
    "nv_inference_compute_infer_duration_us", "Time of requests in the engine, microseconds.", MODEL
)
output_us = Counter(
    "nv_inference_compute_output_duration_us",
    "Time of requests while outputs are split, microseconds.",
    MODEL,
)
engine_seconds = Counter(
    "ds_engine_seconds",
    "Time that the engine ran batches, once for each batch whatever it holds, seconds.",
    MODEL,
)
cache_hits = Counter(
    "nv_cache_num_hits_per_model", "Requests answered from the response cache.", MODEL
)
cache_misses = Counter(
    "nv_cache_num_misses_per_model", "Requests that the response cache had no answer to.", MODEL
)
cache_hit_us = Counter(
    "nv_cache_hit_duration_per_model", "Time of look-ups that found one, microseconds.", MODEL
)
cache_miss_us = Counter(
    "nv_cache_miss_duration_per_model",
    "Time of look-ups that found none, and of keeping answers, microseconds.",
    MODEL,
)
request_seconds = Histogram(
    "ds_request_seconds",
    "Time from a tensor request's arrival at the gateway to its answer from the worker.",
    MODEL,
    buckets=(
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60
    ),
)  # fmt: skip
queue_seconds = Histogram(
    "ds_queue_seconds",
    "Time that tensor requests which were answered had to wait for a slot.",
    MODEL,
    buckets=(
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5,
        10, 30,
    ),
)  # fmt: skip
first_response_ms = Histogram(
    "nv_inference_first_response_histogram_ms",
    "Time from a tensor request's arrival to its first answer, milliseconds.",
    MODEL,
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 30000, 60000),
)
"""Triton's own buckets, 100, 500, 2000 and 5000, are among these."""

batch_rows = Histogram(
    "ds_batch_rows", "Rows per executed batch.", MODEL, buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
load_seconds = Gauge(
    "nv_model_load_duration_secs",
    "Time that loading the model took, seconds.",
    MODEL,
    multiprocess_mode="livemax",
)
gateway_responses = Counter(
    "ds_gateway_responses", "Answers of the gateways by protocol and status.", ("protocol", "code")
)
in_flight = Gauge(
    "ds_gateway_in_flight_requests",
    "Requests that the gateways hold.",
    ("protocol",),
    multiprocess_mode="livesum",
)
worker_restarts = Counter("ds_worker_restarts", "Times that a worker was started again.", MODEL)
model_ready = Gauge(
    "ds_model_ready", "1 while the model answers.", MODEL, multiprocess_mode="livemax"
)
load = Gauge(
    "ds_load",
    "Requests that wait or run over those that can run at once: the figure to scale on.",
    ("model",),
    multiprocess_mode="livesum",
)
text_tokens = Gauge(
    "ds_text_tokens_in_flight",
    "Tokens of prompts and answers that the gateways have let in to a text model, estimated.",
    ("model",),
    multiprocess_mode="livesum",
)
text_waiting = Gauge(
    "ds_text_waiting_requests",
    "Text requests that wait in the gateways for room in the model.",
    ("model",),
    multiprocess_mode="livesum",
)
text_refused = Counter(
    "ds_text_refused", "Text requests that were refused because the model was full.", ("model",)
)
upstream_answers = Counter(
    "ds_upstream_answers",
    "Answers of other servers, by status; lost where there was none.",
    ("model", "code"),
)
upstream_retries = Counter(
    "ds_upstream_retries", "Requests that were sent to another server again.", ("model",)
)
upstream_breaker = Gauge(
    "ds_upstream_breaker",
    "Whether another server is asked: 0 yes, 1 one request is a proof, 2 it is left alone.",
    ("model",),
    multiprocess_mode="livemax",
)
stand_ins = Counter(
    "ds_text_stand_ins", "Text requests that another model answered.", ("model", "by")
)


def _machine(name: str, about: str, labels: tuple[str, ...] = ()) -> Gauge:
    return Gauge(name, about, labels, multiprocess_mode="livemax")


GPU = ("gpu_uuid",)

cpu_utilization = _machine("nv_cpu_utilization", "Part of the processors in use, 0 to 1.")
cpu_memory_total = _machine("nv_cpu_memory_total_bytes", "Memory of the machine, bytes.")
cpu_memory_used = _machine("nv_cpu_memory_used_bytes", "Memory of the machine in use, bytes.")
gpu_utilization = _machine("nv_gpu_utilization", "Part of the time the GPU was busy, 0 to 1.", GPU)
gpu_memory_total = _machine("nv_gpu_memory_total_bytes", "Memory of the GPU, bytes.", GPU)
gpu_memory_used = _machine("nv_gpu_memory_used_bytes", "Memory of the GPU in use, bytes.", GPU)
gpu_power = _machine("nv_gpu_power_usage", "Power that the GPU takes, watts.", GPU)
gpu_power_limit = _machine("nv_gpu_power_limit", "Power that the GPU may take, watts.", GPU)
gpu_energy = Counter("nv_energy_consumption", "Energy since the server started, joules.", GPU)


TELL_SECONDS = 0.2
"""How far the files may lag behind. Writing a metric takes some microseconds, and a request would
pay for a dozen; who reads the metrics asks the processes to write first."""

_untold: dict[Callable[[], None], asyncio.TimerHandle] = {}


def later(tell: Callable[[], None]) -> None:
    """Call `tell` within TELL_SECONDS, once; it writes what has been counted."""
    if tell not in _untold:
        loop = asyncio.get_running_loop()
        _untold[tell] = loop.call_later(TELL_SECONDS, _tell, tell)


def tell_all() -> None:
    """Write what this process has counted, now."""
    for tell in list(_untold):
        _tell(tell)


def _tell(tell: Callable[[], None]) -> None:
    _untold.pop(tell).cancel()
    tell()


class Tally:
    """A number that changes often. `report` is told by how much, a little later."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._untold: float = 0

    def add(self, amount: float = 1) -> None:
        if not self._untold:
            later(self._tell)
        self._untold += amount

    def _tell(self) -> None:
        untold, self._untold = self._untold, 0
        if untold:
            self._report(untold)


class Level:
    """A number as it is now. `report` is told it a little later."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._value: float = 0

    def set(self, value: float) -> None:
        if value != self._value:
            self._value = value
            later(self._tell)

    def _tell(self) -> None:
        self._report(self._value)


class Observations:
    """What a histogram is told a little later, writing each bucket once."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._values: list[float] = []

    def add(self, value: float) -> None:
        if not self._values:
            later(self._tell)
        self._values.append(value)

    def _tell(self) -> None:
        values, self._values = self._values, []
        bounds, buckets = self._histogram._upper_bounds, self._histogram._buckets
        for index, count in Counts(bisect_left(bounds, value) for value in values).items():
            buckets[index].inc(count)
        self._histogram._sum.inc(sum(values))


_TOTAL = re.compile(
    rb"^((?:# (?:HELP|TYPE) )?)(?:(nv_\w+?)|ds_own:([\w:]+?))_total\b", re.MULTILINE
)
"""What the library adds to the names of counters; not of those that Triton calls otherwise, nor of
those that Python models have named, which are marked as such."""


def render() -> bytes:
    """All processes' metrics in Prometheus text form; Triton's names without `_total`."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    with metric_files.reading(Path(os.environ[DIRECTORY])):
        return _TOTAL.sub(rb"\1\2\3", generate_latest(registry))


def collect() -> list[Metric]:
    """All processes' metrics as objects."""
    with metric_files.reading(Path(os.environ[DIRECTORY])):
        collector = MultiProcessCollector(CollectorRegistry())  # type: ignore[no-untyped-call]
        return list(collector.collect())  # type: ignore[no-untyped-call]


def forget(pid: int) -> None:
    """Drop a dead process's gauges; what it counted stays."""
    if DIRECTORY in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
        metric_files.keep(Path(os.environ[DIRECTORY]), pid)
