"""All metrics as an OpenTelemetry message, and the message to a collector by OTLP over HTTP.

What is usual for OpenTelemetry can be set by the environment: OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS. Imported where metrics are pushed only.
"""

from __future__ import annotations

import gzip
import http.client
import logging
import math
import os
import socket
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as otlp
from opentelemetry.sdk.resources import Resource
from opentelemetry.util.re import parse_env_headers
from prometheus_client import Metric
from prometheus_client.samples import Sample

from ds_serve import __version__, metrics

log = logging.getLogger(__name__)

SECONDS = 5.0
"""How long the collector may take for one snapshot."""

USELESS = frozenset({400, 413, 415, 422})
"""Statuses after which the same snapshot will never be taken."""

CUMULATIVE = otlp.AGGREGATION_TEMPORALITY_CUMULATIVE


class Sender:
    """`endpoint` takes OTLP metrics; `name` is the server's."""

    def __init__(self, endpoint: str, name: str) -> None:
        self._endpoint = endpoint
        self._started = time.time_ns()
        self._resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME", name),
                "service.instance.id": f"{socket.gethostname()}-{name}",
                "service.version": __version__,
            }
        )
        given = os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "")
        self._headers = dict(parse_env_headers(given, liberal=True)) | {
            "content-type": "application/x-protobuf",
            "content-encoding": "gzip",
            "user-agent": f"ds-serve/{__version__}",
        }

    def snapshot(self) -> bytes:
        """All metrics as they are now, in gzip."""
        now = time.time_ns()
        message = ExportMetricsServiceRequest()
        about = message.resource_metrics.add()
        about.resource.attributes.extend(_pairs(self._resource.attributes.items()))
        scope = about.scope_metrics.add()
        scope.scope.name = "ds_serve"
        scope.metrics.extend(described(metrics.collect(), self._started, now))
        return gzip.compress(message.SerializeToString())

    def send(self, snapshot: bytes) -> str:
        request = urllib.request.Request(self._endpoint, snapshot, self._headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=SECONDS):  # noqa: S310 - http or https
                return ""
        except urllib.error.HTTPError as error:
            with error:
                if error.code in USELESS:
                    log.error("a snapshot of the metrics was refused: %s", error)
                    return ""
                return str(error)
        except (OSError, http.client.HTTPException) as error:
            return str(getattr(error, "reason", error)) or type(error).__name__


def described(families: Iterable[Metric], started: int, now: int) -> list[otlp.Metric]:
    """Counters as sums since `started`, levels as gauges, histograms; times in ns since 1970."""
    made = []
    for family in families:
        metric = otlp.Metric(name=family.name, description=family.documentation)
        if family.type == "histogram":
            _histogram(metric, family, started, now)
        elif family.type == "counter":
            metric.sum.aggregation_temporality = CUMULATIVE
            metric.sum.is_monotonic = True
            metric.sum.data_points.extend(_numbers(family.samples, started, now))
        else:
            metric.gauge.data_points.extend(_numbers(family.samples, 0, now))
        made.append(metric)
    return made


def _numbers(samples: Iterable[Sample], started: int, now: int) -> Iterable[otlp.NumberDataPoint]:
    for sample in samples:
        if not math.isnan(sample.value) and not sample.name.endswith("_created"):
            yield otlp.NumberDataPoint(
                attributes=_pairs(sample.labels.items()),
                start_time_unix_nano=started,
                time_unix_nano=now,
                as_double=sample.value,
            )


def _histogram(metric: otlp.Metric, family: Metric, started: int, now: int) -> None:
    metric.histogram.aggregation_temporality = CUMULATIVE
    series: dict[tuple[tuple[str, str], ...], dict[str, float]] = defaultdict(dict)
    for sample in family.samples:
        labels = {k: v for k, v in sample.labels.items() if k != "le"}
        what = sample.labels.get("le") or sample.name.removeprefix(family.name)
        series[tuple(sorted(labels.items()))][what] = sample.value
    for key, values in series.items():
        bounds = sorted((each for each in values if not each.startswith("_")), key=float)
        reached = [values[bound] for bound in bounds]
        counts = [int(n - before) for before, n in zip([0, *reached], reached, strict=False)]
        metric.histogram.data_points.add(
            attributes=_pairs(key),
            start_time_unix_nano=started,
            time_unix_nano=now,
            count=sum(counts),
            sum=values.get("_sum", 0.0),
            explicit_bounds=[float(bound) for bound in bounds if bound != "+Inf"],
            bucket_counts=counts,
        )


def _pairs(pairs: Iterable[tuple[str, Any]]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=str(value))) for key, value in pairs]
