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
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

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
    "nv_inference_compute_input_duration_us", "Time spent joining inputs, microseconds.", MODEL
)
infer_us = Counter(
    "nv_inference_compute_infer_duration_us", "Time spent in the engine, microseconds.", MODEL
)
output_us = Counter(
    "nv_inference_compute_output_duration_us", "Time spent splitting outputs, microseconds.", MODEL
)
request_seconds = Histogram(
    "ds_request_seconds",
    "Time from a tensor request's arrival at the gateway to its answer from the worker.",
    MODEL,
    buckets=(
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60
    ),
)  # fmt: skip
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
worker_restarts = Counter(
    "ds_worker_restarts", "Times that a worker was started again.", ("model",)
)
model_ready = Gauge(
    "ds_model_ready", "1 while the model answers.", ("model",), multiprocess_mode="livemax"
)
load = Gauge(
    "ds_load",
    "Requests that wait or run, for each model: the figure to scale on.",
    ("model",),
    multiprocess_mode="livesum",
)


class Tally:
    """A count that is told to `report` once a turn of the event loop, not at every step.

    Writing a metric costs some microseconds, which a request should not pay several times.
    """

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._untold = 0
        self._loop = asyncio.get_running_loop()

    def add(self, amount: int) -> None:
        if not self._untold:
            self._loop.call_soon(self._tell)
        self._untold += amount

    def _tell(self) -> None:
        untold, self._untold = self._untold, 0
        if untold:
            self._report(untold)


def observe(histogram: Histogram, values: Sequence[float]) -> None:
    """`histogram.observe` of each value, writing what changed once."""
    bounds = histogram._upper_bounds
    for index, count in Counts(bisect_left(bounds, value) for value in values).items():
        histogram._buckets[index].inc(count)
    histogram._sum.inc(sum(values))


_TOTAL = re.compile(rb"^((?:# (?:HELP|TYPE) )?nv_\w+?)_total\b", re.MULTILINE)


def render() -> bytes:
    """All processes' metrics in Prometheus text form; Triton's names without `_total`."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return _TOTAL.sub(rb"\1", generate_latest(registry))


def forget(pid: int) -> None:
    """Drop a dead process's gauges; what it counted stays."""
    if DIRECTORY in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
