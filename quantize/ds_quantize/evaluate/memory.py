"""The memory that a model takes, measured in a process of its own.

As a program (`python -m ds_quantize.evaluate.memory`, a ModelSpec and options as JSON on standard
input) it loads the model, runs one batch and prints by how many bytes it grew at its peak.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import msgspec
import numpy as np

from ds_engines.base import ENGINES, EngineOptions, Tensors, load
from ds_engines.errors import EngineFailure
from ds_engines.spec import ModelSpec

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
SECONDS = 600


class Task(msgspec.Struct):
    """What the child process is to load and run; `inputs` is a `.npz` file of this module."""

    spec: ModelSpec
    options: EngineOptions
    inputs: Path


def measured(spec: ModelSpec, options: EngineOptions, inputs: Tensors) -> int | None:
    """Bytes; None where the system does not tell. Raises EngineFailure where the child fails."""
    if not STATUS.is_file():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "inputs.npz")
        np.savez(path, allow_pickle=True, **inputs)
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=msgspec.json.encode(Task(spec, options, path), enc_hook=str),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"status {done.returncode}"
        raise EngineFailure(f"{spec.name} failed in a process of its own: {last}")
    return int(done.stdout)


def _grown(task: Task) -> int:
    # The library itself is no part of the model.
    import_module(ENGINES[task.spec.engine].partition(":")[0])
    with np.load(task.inputs, allow_pickle=True) as file:
        inputs = dict(file)
    forget_peak()
    before = status("VmRSS")
    engine = load(task.spec, task.options)
    engine.run(inputs)
    return max(0, status("VmHWM") - before)


def forget_peak() -> None:
    """Let the system count the peak anew from here."""
    try:
        RESET.write_text("5")
    except OSError:
        return


def status(field: str) -> int:
    """Bytes of this process, as `/proc/self/status` has them: VmRSS, VmHWM (the peak)."""
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise EngineFailure(f"{STATUS} has no {field}")


def _as_path(kind: type, value: object) -> Path:
    return Path(str(value))


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.buffer.read(), type=Task, dec_hook=_as_path)
    sys.stdout.write(str(_grown(given)))
