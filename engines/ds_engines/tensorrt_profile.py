"""Times of layers by TensorRT's profiler."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from ds_engines.base import EngineOptions, Tensors
from ds_engines.layers import Layer, LayerProfile
from ds_engines.spec import ModelSpec
from ds_engines.tensorrt import TensorRTEngine
from ds_engines.tensorrt_layers import inspected
from ds_engines.tensorrt_slot import Slot

WARM_UP = 10
FEWEST = 5


def profile(
    spec: ModelSpec, options: EngineOptions, batch: Tensors, seconds: float
) -> LayerProfile:
    """See ds_engines.layers.profile. Between layers, the profiler waits for each to end."""
    engine = TensorRTEngine(spec, options)
    try:
        for _ in range(WARM_UP):
            engine.run(batch)
        runs, began = 0, time.perf_counter()
        while runs < FEWEST or time.perf_counter() - began < seconds / 2:
            engine.run(batch)
            runs += 1
        whole = (time.perf_counter() - began) / runs * 1e6
        kinds = {layer.name: layer.kind for layer in inspected(engine.library, engine.engine)}
        times = _times(engine, batch, seconds / 2)
        layers = (Layer(name, kinds.get(name, ""), us) for name, us in times.items())
        return LayerProfile("tensorrt", runs, whole, tuple(layers))
    finally:
        engine.close()


def _times(engine: TensorRTEngine, batch: Tensors, seconds: float) -> dict[str, float]:
    """Microseconds of each layer, in a slot of its own."""
    slot = Slot(engine.machine._replace(graphs=False))
    names = [port.name for port in engine.machine.outputs]
    recorder = _recorder(engine.library)
    try:
        slot.run(batch, names)
        slot.watch(recorder)
        runs, began = 0, time.perf_counter()
        while runs < FEWEST or time.perf_counter() - began < seconds:
            slot.run(batch, names)
            runs += 1
    finally:
        slot.free()
    return {name: ms / runs * 1000 for name, ms in recorder.ms.items()}


def _recorder(library: Any) -> Any:
    """What TensorRT tells the milliseconds of each layer."""

    class Recorder(library.api.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.ms: dict[str, float] = defaultdict(float)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.ms[layer_name] += ms

    return Recorder()
