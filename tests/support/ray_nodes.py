"""Replicas on the nodes of a Ray cluster on this machine, seen as processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving import children


def servers(node: Any) -> list[int]:
    """The process ids of the replicas' servers that run on a node."""
    (raylet,) = (one.process.pid for one in node.all_processes["raylet"])
    below = [pid for worker in children(raylet) for pid in descendants(worker)]
    return [pid for pid in below if b"ds_serve.cluster.child" in _command(pid)]


def replicas(node: Any) -> int:
    return len(servers(node))


def descendants(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    try:
        found = [
            int(child)
            for task in tasks.iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
