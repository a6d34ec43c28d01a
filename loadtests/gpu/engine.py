"""The engine by itself: its answers, and its speed beside the same file without us."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ds_engines.base import BatchEngine, EngineOptions, Tensors, load
from ds_engines.spec import BatchPolicy, ModelSpec
from loadtests.gpu import models

SLOTS = 4
LEVEL = {"int8": "2"}
"""How long the builder looks for quick kernels: at its usual 3 to 5, INT8 takes many minutes."""


def spec_of(folder: Path, kind: str, most: int, engine: str, level: str) -> ModelSpec:
    level = level or LEVEL.get(kind, "")
    return ModelSpec(
        name=kind,
        engine=engine,
        artifact=models.path_of(folder, kind, engine),
        batch=BatchPolicy(max_batch_size=most),
        slots=SLOTS,
        parameters={"tensorrt.level": level} if level else {},
    )


def measured(
    spec: ModelSpec, folder: Path, sizes: list[int], seconds: float, device: str
) -> dict[str, Any]:
    """Answers against the CPU's, and images/s at each batch size."""
    began = time.perf_counter()
    dtype = models.dtype_of(spec.name, spec.engine)
    options = EngineOptions(threads=os.cpu_count() or 2, device=device, dtype=dtype)
    engine = load(spec, options)
    found: dict[str, Any] = {"loaded_s": round(time.perf_counter() - began, 1)}
    try:
        found["largest_batch"] = engine.spec.batch.max_batch_size
        found["answers"] = _compared(engine, folder, spec.name)
        found["engine"] = {
            size: rate(engine.run, engine.spec.slots, _batch(spec, folder, size), seconds)
            for size in sizes
        }
        if spec.engine == "tensorrt":
            return found | _plan(engine, sizes, seconds)
    finally:
        engine.close()
    return found | _framework(spec, options, folder, sizes, seconds)


def _framework(
    spec: ModelSpec, options: EngineOptions, folder: Path, sizes: list[int], seconds: float
) -> dict[str, Any]:
    """The same file by its framework, without us."""
    from loadtests.gpu import frameworks

    bare = frameworks.BARE[spec.engine](spec.artifact, options)
    rates = {size: rate(bare, SLOTS, _batch(spec, folder, size), seconds) for size in sizes}
    return {"library": bare.library, "bare": rates}


def _batch(spec: ModelSpec, folder: Path, size: int) -> Tensors:
    name, pictures = models.pictures(folder, spec.engine)
    return {name: np.ascontiguousarray(np.resize(pictures, (size, *pictures.shape[1:])))}


def _plan(engine: Any, sizes: list[int], seconds: float) -> dict[str, Any]:
    from ds_engines.tensorrt_layers import inspected
    from loadtests.gpu import bare

    kinds: dict[str, int] = {}
    for layer in inspected(engine.library, engine.engine):
        for name in set(layer.inputs):
            kinds[name] = kinds.get(name, 0) + 1
    return {
        "library": str(engine.library),
        "layers_by_type_of_input": kinds,
        "bare": {size: bare.rate(engine, size, SLOTS, seconds) for size in sizes},
        "compute": {size: bare.computed(engine, size, seconds) for size in sizes},
    }


def _compared(engine: BatchEngine, folder: Path, kind: str) -> dict[str, float]:
    name, pictures = models.pictures(folder, engine.spec.engine)
    wanted = models.answers(folder, kind, engine.spec.engine)
    most = max(1, engine.spec.batch.max_batch_size)
    parts = [pictures[at : at + most] for at in range(0, len(pictures), most)]
    (output,) = (tensor.name for tensor in engine.spec.outputs)
    given = np.concatenate([engine.run({name: part})[output] for part in parts])
    difference = np.abs(given - wanted)
    dot = (given * wanted).sum(1)
    cosine = dot / (np.linalg.norm(given, axis=1) * np.linalg.norm(wanted, axis=1))
    return {
        "relative_error": float(difference.max() / np.abs(wanted).max()),
        "least_cosine": float(cosine.min()),
        "same_first": float((given.argmax(1) == wanted.argmax(1)).mean()),
    }


def rate(run: Callable[[Tensors], Any], lanes: int, batch: Tensors, seconds: float) -> float:
    """Images a second of whole batches, by so many threads."""
    size = len(next(iter(batch.values())))
    counts = [0] * lanes
    failures: list[BaseException] = []
    warm, until = threading.Barrier(len(counts) + 1), [0.0]

    def work(index: int) -> None:
        try:
            for _ in range(6):  # graphs are recorded meanwhile
                run(batch)
            warm.wait()
            while time.perf_counter() < until[0]:
                run(batch)
                counts[index] += size
        except BaseException as error:
            failures.append(error)
            warm.abort()

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(counts))]
    for thread in threads:
        thread.start()
    until[0] = float("inf")
    with contextlib.suppress(threading.BrokenBarrierError):
        warm.wait()
    began = time.perf_counter()
    until[0] = began + seconds
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return round(sum(counts) / (time.perf_counter() - began), 1)
