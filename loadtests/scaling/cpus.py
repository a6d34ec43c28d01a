"""Which processors the server has and which the client, and what processes take of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from loadtests.peers.processes import PROC, TICK, descendants

TOPOLOGY = Path("/sys/devices/system/cpu")
ROLES = {"ds_serve.gateway": "gateway", "ds_serve.worker": "worker"}


def parse(text: str) -> frozenset[int]:
    """0-3,8 as a set. Raises ValueError."""
    found: set[int] = set()
    for span in text.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", span)
        if not ends:
            raise ValueError(f"{text!r} is no list of processors; 0-3,8 is one")
        found |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return frozenset(found)


def cores(topology: Path = TOPOLOGY) -> list[frozenset[int]]:
    """The processors that we may use; those that are threads of one core are together."""
    ours = os.sched_getaffinity(0)
    found = {}
    for cpu in sorted(ours):
        path = topology / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        siblings = parse(path.read_text().strip()) if path.exists() else frozenset({cpu})
        found[min(siblings)] = siblings & ours
    return list(found.values())


def divide(given: Sequence[frozenset[int]]) -> tuple[frozenset[int], frozenset[int]]:
    """Three quarters of the cores for the server, the rest for the client; one core is shared."""
    client = max(1, len(given) // 4)
    server = given[:-client] or given
    return frozenset().union(*server), frozenset().union(*given[-client:])


def roles() -> dict[int, str]:
    """The gateways and workers among the processes that this one has started, by their ids."""
    found = {}
    for pid, _ in descendants():
        try:
            words = (PROC / str(pid) / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
        if module in ROLES:
            found[pid] = ROLES[module]
    return found


def used(pid: int) -> float:
    """CPU seconds of a process and its threads since its start; 0 where it is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return 0.0
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICK


def machine(of: frozenset[int]) -> tuple[float, float]:
    """Seconds that some processors were at work, and that the host gave to others, since boot."""
    busy = stolen = 0.0
    for line in (PROC / "stat").read_text().splitlines():
        name, *fields = line.split()
        if re.fullmatch(r"cpu\d+", name) and int(name[3:]) in of:
            user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
            busy += (user + nice + system + irq + softirq) / TICK
            stolen += steal / TICK
    return busy, stolen
