"""Statistics and metrics tell the same of a worker's requests, in Triton's sense."""

from __future__ import annotations

import time
from pathlib import Path

from prometheus_client import REGISTRY

from ds_engines.spec import ModelSpec
from ds_serve import metrics
from ds_serve.transport.link import Link
from ds_serve.transport.messages import Infer
from ds_serve.worker.accounts import Accounts
from ds_serve.worker.work import Job, Timing

MILLISECOND = 1_000_000
LINK = Link(lambda link, frames: None)


def job(number: int) -> Job:
    now = time.monotonic()
    return Job(LINK, Infer(number, number, now, now + 1, [], ()), {}, started=now)


async def test_each_request_of_a_batch_has_lived_through_all_of_it() -> None:
    accounts = Accounts(ModelSpec("batched", "python", Path("m"), inputs=(), outputs=()))
    timing = Timing(4, 1 * MILLISECOND, 20 * MILLISECOND, 3 * MILLISECOND)
    accounts.executed([timing])
    accounts.answered([job(number) for number in range(4)], [timing])
    metrics.tell_all()

    assert accounts.statistics.execution_count == 1
    labels = {"model": "batched", "version": "1"}
    assert REGISTRY.get_sample_value("ds_engine_seconds_total", labels) == 0.02, (
        "once, not four times"
    )
    for part, ms in {"input": 1, "infer": 20, "output": 3}.items():
        counted = getattr(accounts.statistics, f"compute_{part}")
        assert (counted.count, counted.ns) == (4, 4 * ms * MILLISECOND)
        name = f"nv_inference_compute_{part}_duration_us_total"
        told = REGISTRY.get_sample_value(name, labels)
        assert told == counted.ns / 1e3
