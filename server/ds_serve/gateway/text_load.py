"""What a text worker says about itself in its metrics: how large its KV cache is, and how full."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

FULL, BACKLOG = 0.95, 0.05
"""Above that part of the KV cache in use, a worker gets no more while as many requests wait in it
as that part of those that run: so much keeps it busy until it is looked at again.
"""

MORE = 1.5
"""Times what the cache holds is let in: few answers become as long as they may."""

_SAMPLE = re.compile(
    r"^vllm:(kv_cache_usage_perc|num_requests_waiting|num_requests_running|cache_config_info)"
    r"(?:{([^}]*)})? (\S+)",
    re.MULTILINE,
)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Load(NamedTuple):
    """`capacity`: tokens that the KV cache holds; 0 where the worker does not say."""

    capacity: int = 0
    used: float = 0.0
    waiting: float = 0.0
    running: float = 0.0

    @property
    def bound(self) -> int:
        """Tokens that may be let in; 0 where that is not known."""
        return int(self.capacity * MORE)

    @property
    def full(self) -> bool:
        return self.used >= FULL and self.waiting > BACKLOG * self.running


def read(text: str) -> Load:
    """Of one worker's metrics; the engines that it is made of together."""
    capacity, used, waiting, running = 0, [0.0], 0.0, 0.0
    for name, labels, value in _SAMPLE.findall(text):
        try:
            if name == "cache_config_info":
                capacity += _capacity(dict(_LABEL.findall(labels)))
            elif name == "kv_cache_usage_perc":
                used.append(float(value))
            elif name == "num_requests_waiting":
                waiting += float(value)
            else:
                running += float(value)
        except ValueError:
            continue
    return Load(capacity, max(used), waiting, running)


def _capacity(labels: dict[str, str]) -> int:
    """Of vLLM's description of its cache, in tokens."""
    return int(labels.get("num_gpu_blocks", "0")) * int(labels.get("block_size", "0"))


def together(loads: Iterable[Load]) -> Load:
    """Of several workers, of which any may take a request."""
    known = list(loads)
    if not known:
        return Load()
    free = min(known, key=lambda load: (load.full, load.used))
    sizes = [load.capacity for load in known]
    # Where one does not say, nobody knows for all.
    return free._replace(capacity=sum(sizes) if all(sizes) else 0)
