"""Times of layers by ONNX Runtime's profiler."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_engines.base import EngineOptions, Tensors
from ds_engines.errors import EngineFailure
from ds_engines.layers import Layer, LayerProfile
from ds_engines.onnxruntime import OnnxRuntimeEngine
from ds_engines.spec import ModelSpec

WARM_UP = 3
FEWEST, MOST = 5, 2000
EVENTS = 900_000
"""ONNX Runtime drops what comes after its millionth event."""

HOLDERS = frozenset({"If", "Loop", "Scan"})
"""Operators with nodes inside. Times are whole microseconds, so that two short nodes, one after the
other, may look as if one ran inside the other."""

NODE, RUN = "_kernel_time", "model_run"


def profile(
    spec: ModelSpec, options: EngineOptions, batch: Tensors, seconds: float
) -> LayerProfile:
    """See ds_engines.layers.profile. The profiler itself slows small layers by some microseconds
    each: shares tell more than sums.
    """
    with tempfile.TemporaryDirectory() as folder:
        engine = OnnxRuntimeEngine(spec, options, profile=Path(folder, "layers"))
        begun = time.perf_counter()
        for _ in range(WARM_UP):
            engine.run(batch)
        each = (time.perf_counter() - begun) / WARM_UP
        until = time.perf_counter() + seconds
        runs = 0
        most = _most_runs(each)
        while runs < FEWEST or (runs < most and time.perf_counter() < until):
            engine.run(batch)
            runs += 1
        events = json.loads(engine.end_profiling().read_text())
        engine.close()
    return _profile(events, runs)


def _most_runs(seconds_each: float) -> int:
    """A node takes a microsecond or more: no more of them fit a run."""
    return max(FEWEST, min(MOST, int(EVENTS / max(1.0, seconds_each * 1e6))))


@dataclass
class _Open:
    """A node that may have others inside; `end` in microseconds."""

    path: str
    op: str
    end: int


def _profile(events: Sequence[Mapping[str, Any]], runs: int) -> LayerProfile:
    """Of the last `runs` runs; those before were trials and the warm-up."""
    whole = sorted((e for e in events if e["name"] == RUN), key=lambda e: e["ts"])[-runs:]
    if len(whole) < runs:
        raise EngineFailure(f"ONNX Runtime's profile holds {len(whole)} of {runs} runs")
    since = whole[0]["ts"]
    nodes = [e for e in events if e["name"].endswith(NODE) and e["ts"] >= since]
    layers = tuple(Layer(path, op, own / runs) for (path, op), own in _own_times(nodes).items())
    return LayerProfile("onnxruntime", runs, sum(e["dur"] for e in whole) / runs, layers)


def _own_times(nodes: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], int]:
    """Microseconds by path and operator, in the order in which they first ran."""
    own: dict[tuple[str, str], int] = defaultdict(int)
    open_nodes: dict[int, list[_Open]] = defaultdict(list)
    for event in sorted(nodes, key=lambda e: (e["ts"], -e["dur"])):
        stack = open_nodes[event["tid"]]
        end = event["ts"] + event["dur"]
        while stack and (end > stack[-1].end or event["ts"] >= stack[-1].end):
            stack.pop()
        name = event["name"].removesuffix(NODE).strip("/")
        path = f"{stack[-1].path}/{name}" if stack else name
        op = event["args"].get("op_name", "?")
        if stack:
            own[stack[-1].path, stack[-1].op] -= event["dur"]
        own[path, op] += event["dur"]
        if op in HOLDERS:
            stack.append(_Open(path, op, end))
    return own
