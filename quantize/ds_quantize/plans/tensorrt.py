"""TensorRT plans at the end of a recipe: the engines' builder, under a progress bar."""

from __future__ import annotations

from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

from ds_engines import tensorrt_builder, tensorrt_library
from ds_engines.errors import LoadError, Unsupported
from ds_engines.tensorrt_builder import BuildOptions, Built
from ds_engines.tensorrt_library import Library
from ds_quantize.context import Context
from ds_quantize.errors import MethodError, MissingExtra
from ds_quantize.forms import Model, PlanModel
from ds_quantize.methods.onnx import TensorRT
from ds_quantize.onnx_methods import graph
from ds_quantize.plans.plan_progress import Done, steps

FILE = "model.plan"


def tensorrt(model: Model, method: TensorRT, context: Context) -> PlanModel:
    """Handler of `tensorrt`."""
    library = _library(method.library)
    options = BuildOptions(
        batches=method.batches,
        shapes=method.shapes,
        level=method.level,
        workspace=method.workspace,
        sparse=method.sparse,
        compatible=method.version_compatible,
    )
    build = partial(tensorrt_builder.build, library, graph.path_of(model), options)
    try:
        gpu = tensorrt_library.gpu(library)
        built = _watched(build, context)
    except (LoadError, Unsupported) as error:
        raise MethodError(f"tensorrt: {error}") from error
    plan = context.folder / FILE
    plan.write_bytes(built.plan)
    context.measured["plan"] = {
        "library": str(library),
        "bytes": len(built.plan),
        "gpu": gpu,
        "types": _types(built),
    }
    return PlanModel(plan, str(library))


def _library(wanted: str) -> Library:
    """The library of that name, or the first that is installed. Raises MissingExtra."""
    try:
        return tensorrt_library.require(wanted)
    except LoadError as error:
        raise MissingExtra(f"a TensorRT plan: {error}") from error


def _types(built: Built) -> dict[str, int]:
    """How many layers take each type of input."""
    counts: dict[str, int] = {}
    for layer in built.layers:
        for name in set(layer.inputs):
            counts[name] = counts.get(name, 0) + 1
    return counts


def _watched(build: Any, context: Context) -> Built:
    """Build in a thread of its own, while this one shows how far it is."""
    events: SimpleQueue[Any] = SimpleQueue()

    def run() -> None:
        try:
            events.put(Done(build(watch=lambda phase, _: events.put(phase))))
        except Exception as error:
            events.put(Done(error=error))

    Thread(target=run, daemon=True).start()
    done = Done()
    for event in context.progress.track(steps(events), "Plan"):
        done = event if isinstance(event, Done) else done
    if done.built is None:
        raise done.error or MethodError("tensorrt: the building ended without a plan")
    return done.built
