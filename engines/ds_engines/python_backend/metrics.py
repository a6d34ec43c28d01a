"""Metrics of a model's own, told with the server's."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from ds_engines.python_backend.faults import TritonModelException

OWN = "ds_own:"
"""What the names of models' own counters begin with, until they are told."""


class MetricKind(IntEnum):
    """What a metric's values mean."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


_lock = threading.Lock()
_known: dict[str, _Family] = {}


class _Family:
    """What all MetricFamily objects of one name share; made with the first metric, whose labels
    all others must have.
    """

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        self.name, self.description, self.kind = name, description, kind
        self.metrics: dict[tuple[tuple[str, str], ...], Metric] = {}
        self._made: Any = None

    def child(self, labels: Mapping[str, str], buckets: Sequence[float] | None) -> Any:
        try:
            if self._made is None:
                self._made = self._make(tuple(labels), buckets)
            return self._made.labels(**labels) if labels else self._made
        except ValueError as error:
            raise TritonModelException(f"metric {self.name!r}: {error}") from None

    def _make(self, labels: tuple[str, ...], buckets: Sequence[float] | None) -> Any:
        if self.kind == MetricKind.COUNTER:
            return Counter(_counter(self.name), self.description, labels)
        if self.kind == MetricKind.GAUGE:
            return Gauge(self.name, self.description, labels, multiprocess_mode="livesum")
        if not buckets:
            raise TritonModelException(f"metric {self.name!r}: a histogram needs buckets")
        return Histogram(self.name, self.description, labels, buckets=tuple(buckets))


def _counter(name: str) -> str:
    """So marked, it is told as it is, and not with the library's ending."""
    return name if name.endswith("_total") else OWN + name


class Metric:
    """One series."""

    def __init__(self, family: _Family, child: Any) -> None:
        self._family, self._child = family, child
        self._lock = threading.Lock()
        self._value = 0.0

    def increment(self, value: float) -> None:
        self._only(MetricKind.COUNTER, MetricKind.GAUGE)
        if self._family.kind == MetricKind.COUNTER and value < 0:
            raise TritonModelException(f"metric {self._family.name!r}: a counter never goes down")
        with self._lock:
            self._value += value
            self._child.inc(value)

    def set(self, value: float) -> None:
        self._only(MetricKind.GAUGE)
        with self._lock:
            self._value = value
            self._child.set(value)

    def observe(self, value: float) -> None:
        self._only(MetricKind.HISTOGRAM)
        self._child.observe(value)

    def value(self) -> float:
        self._only(MetricKind.COUNTER, MetricKind.GAUGE)
        return self._value

    def _only(self, *kinds: MetricKind) -> None:
        if self._family.kind not in kinds:
            kind = self._family.kind.name.lower()
            raise TritonModelException(f"metric {self._family.name!r}: not for a {kind}")


class MetricFamily:
    """Metrics of one name and kind, told apart by labels."""

    COUNTER, GAUGE, HISTOGRAM = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        with _lock:
            self._family = _known.setdefault(name, _Family(name, description, MetricKind(kind)))
        if self._family.kind != kind:
            raise TritonModelException(f"metric {name!r} is a {self._family.kind.name} already")

    def Metric(  # noqa: N802 - Triton's name
        self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None
    ) -> Metric:
        said = dict(sorted((labels or {}).items()))
        with _lock:
            found = self._family.metrics.get(tuple(said.items()))
            if found is None:
                found = Metric(self._family, self._family.child(said, buckets))
                self._family.metrics[tuple(said.items())] = found
        return found
