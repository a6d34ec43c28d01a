"""Loads and unloads by the repository's own calls: does memory of the device or the host stay?"""

from __future__ import annotations

import statistics
import time
from typing import Any

from ds_client import Client
from loadtests import server
from loadtests.gpu import models
from loadtests.gpu.machine import gpu_memory, host_memory, workers
from loadtests.gpu.parts import Part

GONE_SECONDS = 20.0
MODEL = "resnet50"


def measure(part: Part) -> None:
    part.keep(kinds={})
    shares = {"onnxruntime": 0.6, "torch": 1.0}
    for name in part.engines:
        until = time.monotonic() + shares[name] * (part.left() - 20)
        try:
            _cycles(part, name, until)
        except Exception as error:
            found = part.found["kinds"].get(name, {})
            words = f"{type(error).__name__}: {error}"[-2000:]
            part.keep(kinds=part.found["kinds"] | {name: found | {"failed": words}})


def _cycles(part: Part, name: str, until: float) -> None:
    file = models.path_of(part.folder, "tf32", name)
    root = part.repository(name, MODEL, file, 8)
    given = ["--model-repository", str(root), *part.arguments(name, part.device())]
    given += ["--model-control-mode", "explicit", "--open-control"]
    batch = models.batch(part.folder, name, MODEL, 4)
    found: dict[str, list[Any]] = {"device": [], "loaded": [], "host": [], "seconds": []}
    with (
        server.started(given, part.log(name)) as there,
        Client(there.grpc, timeout=120) as client,
    ):
        while len(found["device"]) < part.cycles and time.monotonic() < until:
            began = time.monotonic()
            client.load(MODEL)
            client.infer(MODEL, batch)
            found["loaded"].append(_used(part))
            client.unload(MODEL)
            _until_gone(there.pid)
            found["device"].append(_used(part))
            found["host"].append(host_memory(there.pid))
            found["seconds"].append(round(time.monotonic() - began, 2))
            part.keep(kinds=part.found["kinds"] | {name: _summary(part, found)})


def _used(part: Part) -> int:
    memory = gpu_memory()
    return memory[part.number] if part.gpu and part.number < len(memory) else 0


def _until_gone(pid: int) -> None:
    until = time.monotonic() + GONE_SECONDS
    while workers(pid):
        if time.monotonic() > until:
            raise TimeoutError(f"workers {workers(pid)} are there {GONE_SECONDS} s after unload")
        time.sleep(0.05)
    time.sleep(0.3)  # the driver takes a moment to give a process's memory back


def _summary(part: Part, found: dict[str, list[Any]]) -> dict[str, Any]:
    def growth(values: list[int]) -> int:
        few = max(1, min(5, len(values) // 2))
        return int(statistics.median(values[-few:]) - statistics.median(values[:few]))

    return {
        "cycles": len(found["device"]), "of": part.cycles,
        "device_growth": growth(found["device"]), "host_growth": growth(found["host"]),
        "device": found["device"], "loaded": found["loaded"], "host": found["host"],
        "seconds": found["seconds"],
    }  # fmt: skip
