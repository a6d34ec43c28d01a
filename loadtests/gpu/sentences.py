"""Sentence embeddings by MiniLM: answers against the CPU's, and rates of the bare framework, of the
engine and of the whole server.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ds_client import Client
from ds_engines.base import EngineOptions, load
from ds_engines.spec import BatchPolicy, ModelSpec
from loadtests import server
from loadtests.gpu import engine, frameworks, minilm, serving
from loadtests.gpu.parts import Part

SIZES = (1, 8, 32, 128)
MODEL = "minilm"


def measure(part: Part) -> None:
    wanted = _on_cpu(part)
    part.keep(weights=minilm.kind(part.folder), tokens=minilm.TOKENS, kinds={})
    for name in part.engines:
        file = minilm.path_of(part.folder, name)
        found: dict[str, Any] = {}
        for step in (_served, _engine, _bare):
            if not file.is_file() or part.left() < 30:
                found[step.__name__.strip("_")] = "left out"
                continue
            try:
                found |= step(part, name, wanted)
            except Exception as error:
                found[f"{step.__name__.strip('_')} failed"] = f"{type(error).__name__}: {error}"
            part.keep(kinds=part.found["kinds"] | {name: found})


def _sizes(part: Part) -> tuple[int, ...]:
    return SIZES if part.gpu else SIZES[:2]


def _on_cpu(part: Part) -> Any:
    import onnxruntime as ort

    file = minilm.path_of(part.folder, "onnxruntime")
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, dict(minilm.batch(part.folder, 32)))[0]


def _compared(given: Any, wanted: Any) -> dict[str, float]:
    return {
        "largest_error": float(np.abs(given - wanted).max()),
        "least_cosine": float((given * wanted).sum(1).min()),
    }


def _options(part: Part) -> EngineOptions:
    return EngineOptions(threads=os.cpu_count() or 2, device=part.device())


def _engine(part: Part, name: str, wanted: Any) -> dict[str, Any]:
    file = minilm.path_of(part.folder, name)
    policy = BatchPolicy(max_batch_size=max(SIZES))
    made = load(ModelSpec(MODEL, name, file, batch=policy, slots=engine.SLOTS), _options(part))
    try:
        (output,) = (tensor.name for tensor in made.spec.outputs)
        given = made.run(dict(minilm.batch(part.folder, 32)))[output]
        rates = {
            size: engine.rate(
                made.run, made.spec.slots, dict(minilm.batch(part.folder, size)), part.seconds
            )
            for size in _sizes(part)
        }
        return {"engine answers": _compared(given, wanted), "engine": rates}
    finally:
        made.close()


def _bare(part: Part, name: str, wanted: Any) -> dict[str, Any]:
    """By the first GPU of this process: the parts that run beside are on another."""
    bare = frameworks.BARE[name](minilm.path_of(part.folder, name), _options(part))
    rates = {
        size: engine.rate(bare, engine.SLOTS, dict(minilm.batch(part.folder, size)), part.seconds)
        for size in _sizes(part)
    }
    return {"bare": rates, "library": bare.library}


def _served(part: Part, name: str, wanted: Any) -> dict[str, Any]:
    root = part.repository(name, MODEL, minilm.path_of(part.folder, name), max(SIZES))
    given = ["--model", f"{MODEL}={root / MODEL}", *part.arguments(name, part.device())]
    clients = 8 if part.gpu else 2
    found: dict[str, Any] = {"server": {}}
    with server.started(given, part.log(name)) as there:
        with Client(there.grpc, timeout=60) as client:
            (answer,) = client.infer(MODEL, dict(minilm.batch(part.folder, 32))).values()
        found["server answers"] = _compared(answer, wanted)
        for size in _sizes(part):
            asked = (there.grpc, part.folder, (name, MODEL), size, clients, 2, part.seconds)
            found["server"][size] = serving.asked(*asked)
        if part.gpu:
            asked = (there.grpc, part.folder, (name, MODEL), 1, 8, 32, part.seconds)
            found["singles of 256 clients"] = serving.asked(*asked)
        found["requests"] = there.counted(MODEL)
    return found
