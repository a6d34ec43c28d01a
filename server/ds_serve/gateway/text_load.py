"""What a text worker says about itself in its metrics: how large its KV cache is, and how full."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

FULL = 0.95
"""Of the KV cache. Above it a worker with requests that wait gets no more."""

_SAMPLE = re.compile(
    r"^vllm:(kv_cache_usage_perc|num_requests_waiting|cache_config_info)(?:{([^}]*)})? (\S+)",
    re.MULTILINE,
)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Load(NamedTuple):
    """`capacity`: tokens that the KV cache holds; 0 where the worker does not say."""

    capacity: int = 0
    used: float = 0.0
    waiting: float = 0.0

    @property
    def full(self) -> bool:
        return self.used >= FULL and self.waiting > 0


def read(text: str) -> Load:
    """Of one worker's metrics; the engines that it is made of together."""
    capacity, used, waiting = 0, [0.0], 0.0
    for name, labels, value in _SAMPLE.findall(text):
        try:
            if name == "cache_config_info":
                capacity += _capacity(dict(_LABEL.findall(labels)))
            elif name == "kv_cache_usage_perc":
                used.append(float(value))
            else:
                waiting += float(value)
        except ValueError:
            continue
    return Load(capacity, max(used), waiting)


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
    return Load(sum(sizes) if all(sizes) else 0, free.used, free.waiting)
