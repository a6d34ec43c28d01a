"""Images a second of ResNet-50 on one GPU, and on all of them together, by the same server."""

from __future__ import annotations

import urllib.request
from typing import Any

from loadtests import server
from loadtests.gpu import models, serving
from loadtests.gpu.machine import gpu_memory
from loadtests.gpu.parts import Part

ORDER = (("onnxruntime", "tf32"), ("torch", "tf32"), ("torch", "fp16"), ("onnxruntime", "fp16"))
NEEDED = 80.0
"""Seconds for one more kind."""


def measure(part: Part) -> None:
    size, clients = (128, 6 * part.gpus) if part.gpu else (8, 2)
    part.keep(batch=size, clients=clients, gpus=part.gpus, kinds={})
    for engine, kind in ORDER:
        file = models.path_of(part.folder, kind, engine)
        if engine not in part.engines or not file.is_file() or part.left() < NEEDED:
            part.keep(**{f"{engine} {kind}": "left out"})
            continue
        try:
            found = _one(part, engine, kind, size, clients)
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}"[-2000:]}
        part.keep(kinds=part.found["kinds"] | {f"{engine} {kind}": found})


def _one(part: Part, engine: str, kind: str, size: int, clients: int) -> dict[str, Any]:
    file = models.path_of(part.folder, kind, engine)
    found: dict[str, Any] = {}
    root = part.repository(engine, kind, file, size)
    for name, device in (("one", part.device()), ("all", part.device(several=True))):
        given = ["--model", f"{kind}={root / kind}", *part.arguments(engine, device)]
        given += ["--dtype", models.dtype_of(kind, engine)]
        with server.started(given, part.log(f"{engine}-{kind}-{name}")) as there:
            before = gpu_memory()
            found[name] = serving.asked(
                there.grpc, part.folder, (engine, kind), size, clients, 1, part.seconds
            )
            found[f"{name}: memory before, after"] = [before, gpu_memory()]
            found[f"{name}: metrics"] = _metrics(there.http)
            found[f"{name}: requests"] = there.counted(kind)
    found["scaling"] = round(found["all"] / (part.gpus * found["one"]), 3)
    return found


def _metrics(address: str) -> list[str]:
    """What the server says of GPUs."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return [line for line in lines if line.startswith("nv_gpu")]
