"""Times of layers by OpenVINO's own counters."""

from __future__ import annotations

import time
from collections import defaultdict

from ds_engines.base import EngineOptions, Tensors
from ds_engines.layers import Layer, LayerProfile
from ds_engines.openvino import OpenVINOEngine
from ds_engines.spec import ModelSpec

WARM_UP = 3
FEWEST = 5


def profile(
    spec: ModelSpec, options: EngineOptions, batch: Tensors, seconds: float
) -> LayerProfile:
    """See ds_engines.layers.profile. Layers that OpenVINO has joined bear the name of one of them;
    times are whole microseconds.
    """
    engine = OpenVINOEngine(spec, options, profiled=True)
    try:
        for _ in range(WARM_UP):
            engine.run(batch)
        taken: dict[tuple[str, str], float] = defaultdict(float)
        runs, spent, began = 0, 0.0, time.perf_counter()
        while runs < FEWEST or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            engine.run(batch)
            spent += time.perf_counter() - start
            runs += 1
            for name, kind, us in engine.times():
                taken[name, kind] += us
        layers = (Layer(name, kind, us / runs) for (name, kind), us in taken.items())
        return LayerProfile("openvino", runs, spent / runs * 1e6, tuple(layers))
    finally:
        engine.close()
