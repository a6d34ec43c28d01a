"""What a model's layers take, by the engine's own profiler."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import msgspec

from ds_engines.base import EngineOptions, Tensors
from ds_engines.errors import Unsupported
from ds_engines.spec import ModelSpec


class Layer(msgspec.Struct, frozen=True):
    """One node of the graph that the engine runs, which may be several of the file's, fused.

    `name` has `/` between its parts, where the file has; a node inside another one (the body of a
    loop) has that one's name in front. `us`: microseconds of one run that are its own.
    """

    name: str
    op: str
    us: float


class LayerProfile(msgspec.Struct, frozen=True):
    """Means over `runs` runs of one batch; `run_us` is a whole run, in microseconds."""

    engine: str
    runs: int
    run_us: float
    layers: tuple[Layer, ...]


Profiler = Callable[[ModelSpec, EngineOptions, Tensors, float], LayerProfile]

PROFILERS = {
    "onnxruntime": "ds_engines.onnxruntime_layers:profile",
    "openvino": "ds_engines.openvino_layers:profile",
    "tensorrt": "ds_engines.tensorrt_profile:profile",
    "torch": "ds_engines.torch_layers:profile",
}
"""Engine name to `module:function`; the module is imported when it is first asked for."""


def profile(
    spec: ModelSpec, options: EngineOptions, batch: Tensors, seconds: float
) -> LayerProfile:
    """Load the model once more and run the batch for about `seconds` under the profiler.

    Raises Unsupported for an engine that has none, and what loading and running raise.
    """
    if spec.engine not in PROFILERS:
        raise Unsupported(
            f"{spec.engine} gives no times of layers; of engines, {', '.join(PROFILERS)} can"
        )
    module, _, name = PROFILERS[spec.engine].partition(":")
    profiler: Profiler = getattr(import_module(module), name)
    return profiler(spec, options, batch, seconds)
