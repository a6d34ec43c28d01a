"""What a text model has done, from the metrics that all processes write."""

from __future__ import annotations

import os

from ds_serve import metrics
from ds_serve.transport.messages import Duration, Statistics

TIMES = "vllm:e2e_request_latency_seconds"
"""The histogram of whole requests. Text engines batch by themselves: a request is one execution."""


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
    return Statistics(
        inference_count=done.count,
        execution_count=done.count,
        success=done,
        compute_infer=done,
    )
