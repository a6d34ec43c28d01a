"""The same models behind the real server, asked by clients on the same machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from loadtests import server
from loadtests.gpu import engine, models

START = "go"


def measured(
    folder: Path, kind: str, sizes: list[int], given: dict[str, Any], logs: Path
) -> dict[str, Any]:
    """Images/s at each batch size, each client sending whole batches through shared memory, and
    then single pictures of many clients, joined by the server.
    """
    most, seconds, model = max(sizes), given["seconds"], (given["engine"], kind)
    home = _repository(folder, kind, most, given)
    arguments = ["--max-batch-size", str(most), "--gateways", str(given["gateways"])]
    arguments += ["--device", given["device"], "--dtype", models.dtype_of(kind, given["engine"])]
    if given["engine"] != models.TORCH:
        arguments += ["--engine", given["engine"]]
    found: dict[str, Any] = {}
    with server.running(f"{kind}={home}", arguments, logs / f"{kind}.log") as there:
        found["batches"] = {
            size: asked(there.grpc, folder, model, size, given["clients"], 1, seconds)
            for size in sizes
        }
        singles, each = given["singles"], given["clients"]
        found["singles"] = {
            "clients": singles,
            "images_s": asked(there.grpc, folder, model, 1, each, singles // each, seconds),
        }
        found["requests"] = there.counted(kind)
    return found


def _repository(folder: Path, kind: str, most: int, given: dict[str, Any]) -> Path:
    """A model folder with what the configuration has to say."""
    version = folder / "served" / given["engine"] / kind / "1"
    version.mkdir(parents=True, exist_ok=True)
    source = models.path_of(folder, kind, given["engine"])
    file = version / f"model{source.suffix}"
    if not file.exists():
        file.symlink_to(source.absolute())
    level = given["level"] or engine.LEVEL.get(kind, "")
    text = f"max_batch_size: {most}\ninstance_group [{{ count: {engine.SLOTS} }}]\n"
    text += "dynamic_batching { max_queue_delay_microseconds: 500 }\n"
    if level and given["engine"] == "tensorrt":
        text += f'parameters {{ key: "tensorrt.level" value {{ string_value: "{level}" }} }}\n'
    (version.parent / "config.pbtxt").write_text(text)
    return version.parent


def asked(
    address: str,
    folder: Path,
    model: tuple[str, str],
    size: int,
    clients: int,
    at_once: int,
    seconds: float,
) -> float:
    """Images a second by `clients` processes with `at_once` requests each on their way."""
    command = [sys.executable, "-m", "loadtests.gpu.client", address, str(folder), *model]
    command += [str(size), str(at_once), str(seconds)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(clients)
    ]
    try:
        for process in processes:
            assert process.stdout is not None, "it is a pipe"
            process.stdout.readline()  # ready
        for process in processes:
            assert process.stdin is not None, "it is a pipe"
            process.stdin.write(START + "\n")
            process.stdin.flush()
        said = [process.communicate(timeout=seconds + 120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return round(sum(json.loads(each)["images_s"] for each in said), 1)
