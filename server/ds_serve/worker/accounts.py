"""What a worker has done: for ModelStatistics, and for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ds_engines.spec import ModelSpec
from ds_serve import metrics
from ds_serve.metrics import Level, Observations, Tally
from ds_serve.transport.messages import BatchStatistics, Duration, Infer, Statistics
from ds_serve.worker.work import Job, Timing

REASONS = {
    "Overloaded": "REJECTED",
    "DeadlineExceeded": "REJECTED",
    "Cancelled": "CANCELED",
    "EngineFailure": "BACKEND",
}
"""Triton's reasons for a failed request; OTHER for the rest."""


class Accounts:
    """Counts in nanoseconds for the statistics call, in microseconds for the metrics."""

    def __init__(self, spec: ModelSpec) -> None:
        self.statistics = Statistics()
        labels = (spec.name, spec.version)
        self._success = Tally(metrics.request_success.labels(*labels).inc)
        self._rows = Tally(metrics.inference_count.labels(*labels).inc)
        self._batches = Tally(metrics.execution_count.labels(*labels).inc)
        self._engine = Tally(metrics.engine_seconds.labels(*labels).inc)
        self._request_us = Tally(metrics.request_us.labels(*labels).inc)
        self._queue_us = Tally(metrics.queue_us.labels(*labels).inc)
        self._input_us = Tally(metrics.input_us.labels(*labels).inc)
        self._infer_us = Tally(metrics.infer_us.labels(*labels).inc)
        self._output_us = Tally(metrics.output_us.labels(*labels).inc)
        self._hits = Tally(metrics.cache_hits.labels(*labels).inc)
        self._misses = Tally(metrics.cache_misses.labels(*labels).inc)
        self._hit_us = Tally(metrics.cache_hit_us.labels(*labels).inc)
        self._miss_us = Tally(metrics.cache_miss_us.labels(*labels).inc)
        self._seconds = Observations(metrics.request_seconds.labels(*labels))
        self._first_ms = Observations(metrics.first_response_ms.labels(*labels))
        self._queue_seconds = Observations(metrics.queue_seconds.labels(*labels))
        self._at_once = spec.slots * max(1, spec.batch.max_batch_size)
        self._batch_rows = Observations(metrics.batch_rows.labels(*labels))
        self._pending = Level(metrics.pending.labels(*labels).set)
        self._load = Level(metrics.load.labels(spec.name).set)
        self._failure = {
            reason: Tally(metrics.request_failure.labels(*labels, reason).inc)
            for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
        }

    def waiting(self, waiting: int, running: int) -> None:
        """How many requests wait, and how many the engine has in hand, now."""
        self._pending.set(waiting)
        self._load.set((waiting + running) / self._at_once)

    def executed(self, timings: Sequence[Timing]) -> None:
        """Batches that the engine has run."""
        total = self.statistics
        for timing in timings:
            total.execution_count += 1
            total.inference_count += timing.rows
            batch = total.batches.get(timing.rows)
            if batch is None:
                batch = total.batches[timing.rows] = BatchStatistics(
                    Duration(), Duration(), Duration()
                )
            batch.compute_input.add(timing.input_ns)
            batch.compute_infer.add(timing.infer_ns)
            batch.compute_output.add(timing.output_ns)
            self._rows.add(timing.rows)
            self._batches.add()
            self._engine.add(timing.infer_ns / 1e9)
            self._batch_rows.add(timing.rows)

    def answered(self, jobs: Sequence[Job], timings: Sequence[Timing]) -> None:
        """Requests whose answers are on their way."""
        now = time.monotonic()
        total = self.statistics
        total.last_inference_ms = time.time_ns() // 1_000_000
        shares = _shares(timings)
        queued = 0.0
        succeeded = 0
        request = 0.0
        for job in jobs:
            took = now - job.request.arrived
            if job.answer is not None and job.answer.fault is not None:
                self.failed(job.answer.fault.kind, took)
                continue
            succeeded += 1
            request += took
            self._seconds.add(took)
            if not job.begun:
                self._first_ms.add(took * 1e3)
            waited = job.started - job.request.arrived
            queued += waited
            self._queue_seconds.add(waited)
        if succeeded:
            total.success.add(int(request * 1e9), succeeded)
            total.queue.add(int(queued * 1e9), succeeded)
            total.compute_input.add(shares[0] * succeeded, succeeded)
            total.compute_infer.add(shares[1] * succeeded, succeeded)
            total.compute_output.add(shares[2] * succeeded, succeeded)
            self._success.add(succeeded)
            self._request_us.add(request * 1e6)
            self._queue_us.add(queued * 1e6)
            self._input_us.add(shares[0] * succeeded / 1e3)
            self._infer_us.add(shares[1] * succeeded / 1e3)
            self._output_us.add(shares[2] * succeeded / 1e3)

    def begun(self, job: Job) -> None:
        """One of several answers is on its way, which is not the last one."""
        if not job.begun:
            job.begun = True
            self._first_ms.add((time.monotonic() - job.request.arrived) * 1e3)

    def hit(self, ns: int, request: Infer) -> None:
        """A request that was answered from the cache, where it was looked up in `ns`."""
        took = time.monotonic() - request.arrived
        total = self.statistics
        total.last_inference_ms = time.time_ns() // 1_000_000
        total.success.add(int(took * 1e9))
        total.cache_hit.add(ns)
        self._seconds.add(took)
        self._first_ms.add(took * 1e3)
        self._success.add()
        self._request_us.add(took * 1e6)
        self._hits.add()
        self._hit_us.add(ns / 1e3)

    def missed(self, ns: int, count: int = 1) -> None:
        """Nanoseconds of a look-up that found nothing, or of keeping answers (`count` 0)."""
        self.statistics.cache_miss.add(ns, count)
        self._misses.add(count)
        self._miss_us.add(ns / 1e3)

    def failed(self, kind: str, took: float) -> None:
        """A request that ended without outputs, `took` seconds after its arrival."""
        self.statistics.fail.add(int(took * 1e9))
        self._failure[REASONS.get(kind, "OTHER")].add()


def _shares(timings: Sequence[Timing]) -> tuple[int, int, int]:
    """Nanoseconds of joining, running and splitting that each request of a batch lived through."""
    return (
        sum(timing.input_ns for timing in timings),
        sum(timing.infer_ns for timing in timings),
        sum(timing.output_ns for timing in timings),
    )
