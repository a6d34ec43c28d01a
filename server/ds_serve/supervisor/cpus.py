"""How many processors this server may use, and who gets how many."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available(cgroup: Path = CGROUP) -> int:
    """Whole processors: the affinity mask, bounded by the control group's quota; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota(cgroup)
    return max(1, min(count or 1, int(quota) if quota else count or 1))


def gateways(asked: int) -> int:
    """As many as were asked for; where that is 0, two, or one on a single processor.

    Of two, one may die and the other still answers, and small models are answered quicker.
    """
    return asked or min(2, available())


def share(processors: int, workers: int) -> int:
    """Threads for each of `workers` engines."""
    return max(1, processors // max(1, workers))


def _quota(cgroup: Path) -> float | None:
    """Processors that cpu.max (version 2) or cfs_quota_us (version 1) grants; None: no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)
