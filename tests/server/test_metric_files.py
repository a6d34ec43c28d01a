"""What processes have counted outlives them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ds_serve import metric_files

COUNT = """
import os, sys
from prometheus_client import Counter, Histogram
Counter("done", "", ("model",)).labels("m").inc(2)
Histogram("took", "", buckets=(1, 2)).observe(1.5)
print(os.getpid())
"""
RENDER = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def run(folder: Path, program: str) -> str:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_what_dead_processes_counted_is_added_up_in_two_files(tmp_path: Path) -> None:
    pids = [int(run(tmp_path, COUNT)) for _ in range(3)]
    before = run(tmp_path, RENDER)
    assert 'done_total{model="m"} 6.0' in before
    assert 'took_bucket{le="2.0"} 3.0' in before
    for pid in pids:
        metric_files.keep(tmp_path, pid)
    with metric_files.reading(tmp_path):
        assert sorted(run(tmp_path, RENDER).split()) == sorted(before.split())
    assert {path.name for path in tmp_path.glob("*.db")} == {
        "counter_ended.db",
        "histogram_ended.db",
    }
    metric_files.keep(tmp_path, 10**9)  # one that counted nothing
