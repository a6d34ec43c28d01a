"""What an ensemble has done: counted in the gateways that run it, added up from all of them."""

from __future__ import annotations

import os
import time

from prometheus_client import Counter, Gauge, Metric

from ds_engines.spec import ModelSpec
from ds_serve import metrics
from ds_serve.metrics import Level, Observations, Tally
from ds_serve.transport.messages import Duration, Statistics
from ds_serve.worker.accounts import REASONS

failure_us = Counter(
    "ds_ensemble_failure_duration_us",
    "Time from arrival to failure of requests to ensembles, microseconds.",
    metrics.MODEL,
)
last_ms = Gauge(
    "ds_ensemble_last_inference_ms",
    "When an ensemble gave its last answer, milliseconds since 1970.",
    metrics.MODEL,
    multiprocess_mode="livemax",
)


class Accounts:
    """Of one ensemble in one gateway."""

    def __init__(self, spec: ModelSpec) -> None:
        self._labels = labels = (spec.name, spec.version)
        self._success = Tally(metrics.request_success.labels(*labels).inc)
        self._rows = Tally(metrics.inference_count.labels(*labels).inc)
        self._runs = Tally(metrics.execution_count.labels(*labels).inc)
        self._request_us = Tally(metrics.request_us.labels(*labels).inc)
        self._infer_us = Tally(metrics.infer_us.labels(*labels).inc)
        self._failure_us = Tally(failure_us.labels(*labels).inc)
        self._seconds = Observations(metrics.request_seconds.labels(*labels))
        self._first_ms = Observations(metrics.first_response_ms.labels(*labels))
        self._last = Level(last_ms.labels(*labels).set)
        self._failure = {
            reason: Tally(metrics.request_failure.labels(*labels, reason).inc)
            for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
        }

    def answered(self, rows: int, took: float) -> None:
        """All steps are done, `took` seconds after the request's arrival."""
        self._success.add()
        self._runs.add()
        self._rows.add(rows)
        self._request_us.add(took * 1e6)
        self._infer_us.add(took * 1e6)
        self._seconds.add(took)
        self._first_ms.add(took * 1e3)
        self._last.set(time.time_ns() // 1_000_000)

    def failed(self, kind: str, took: float) -> None:
        """A request that ended without outputs. `kind`: that of the error."""
        self._failure[REASONS.get(kind, "OTHER")].add()
        self._failure_us.add(took * 1e6)

    def statistics(self) -> Statistics:
        """Of all gateways together; the others' last fifth of a second may be missing.

        An ensemble has no queue, and its members count what is theirs: all of its time is told as
        that of inference.
        """
        if metrics.DIRECTORY not in os.environ:
            return Statistics()
        metrics.tell_all()
        families = {family.name: family for family in metrics.collect()}

        def total(name: str) -> float:
            return _total(families.get(name), self._labels)

        done = Duration(
            round(total("nv_inference_request_success")),
            round(total("nv_inference_request_duration_us") * 1000),
        )
        failed = Duration(
            round(total("nv_inference_request_failure")),
            round(total("ds_ensemble_failure_duration_us") * 1000),
        )
        return Statistics(
            inference_count=round(total("nv_inference_count")),
            execution_count=round(total("nv_inference_exec_count")),
            last_inference_ms=round(total("ds_ensemble_last_inference_ms")),
            success=done,
            fail=failed,
            compute_infer=done,
        )


def _total(family: Metric | None, labels: tuple[str, str]) -> float:
    """The sum over whatever other labels there are."""
    samples = () if family is None else family.samples
    return sum(
        sample.value
        for sample in samples
        if (sample.labels.get("model"), sample.labels.get("version")) == labels
    )
