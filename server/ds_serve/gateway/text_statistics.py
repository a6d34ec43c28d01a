"""What a text model has done, from the metrics that all processes write."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable

from ds_serve import metrics
from ds_serve.gateway import worker_metrics
from ds_serve.transport.messages import Duration, Statistics

TIMES = "vllm:e2e_request_latency_seconds"
"""The histogram of whole requests. Text engines batch by themselves: a request is one execution."""


_SAMPLE = re.compile(rf"^{TIMES}_(count|sum)\{{.*\}} (\S+)$", re.MULTILINE)


async def ask(addresses: Iterable[str]) -> Statistics:
    """The same of vLLM servers, which keep their metrics to themselves."""
    done = Duration()
    for text in await asyncio.gather(*map(worker_metrics.read, addresses)):
        for kind, value in _SAMPLE.findall(text):
            if kind == "count":
                done.count += round(float(value))
            else:
                done.ns += round(float(value) * 1e9)
    return _statistics(done)


def read(model: str) -> Statistics:
    """Requests that were answered, and the time they took; times in the queue are among it."""
    done = Duration()
    if metrics.DIRECTORY in os.environ:
        for family in metrics.collect():
            for sample in family.samples if family.name == TIMES else ():
                if sample.labels.get("model_name") != model:
                    continue
                if sample.name == f"{TIMES}_count":
                    done.count += round(sample.value)
                elif sample.name == f"{TIMES}_sum":
                    done.ns += round(sample.value * 1e9)
    return _statistics(done)


def _statistics(done: Duration) -> Statistics:
    return Statistics(
        inference_count=done.count,
        execution_count=done.count,
        success=done,
        compute_infer=done,
    )
