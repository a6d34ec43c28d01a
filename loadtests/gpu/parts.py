"""What a model server has to prove on a machine with GPUs, part by part, each in a process of its
own with a limit of time: one that fails or hangs does not keep the others from being run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loadtests.gpu import engine, minilm, models

LIMITS = {
    "prepare": 200.0, "scaling": 330.0, "sentences": 240.0, "reloads": 480.0, "faults": 300.0,
    "exchange": 120.0,
}  # fmt: skip
"""Seconds that each part may take, in the order in which they are run."""

BESIDE = "reloads"
"""It takes long and little, so that it runs beside what follows where there is another GPU."""

TAIL = 3000
ENGINES = ("onnxruntime", "torch")


class Part:
    """What a part is told. `keep` writes what was found so far: that is there however it ends."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.name = name
        self.folder: Path = given.models.absolute()
        self.out: Path = given.out.absolute()
        self.gpu = not given.device.startswith("cpu")
        self.number, self.gpus, self.seconds = given.number, given.gpus, given.seconds
        self.cycles: int = given.cycles
        self.until: float = time.monotonic() + given.limit
        self.engines = [name for name in ENGINES if find_spec(name) is not None]
        self.found: dict[str, Any] = {"device": given.device, "engines": versions(self.engines)}
        self.out.mkdir(parents=True, exist_ok=True)

    def keep(self, **more: Any) -> None:
        self.found |= more
        (self.out / f"{self.name}.json").write_text(json.dumps(self.found, indent=2))
        print(self.name, json.dumps(more), flush=True)

    def left(self) -> float:
        """Seconds until this part is ended."""
        return self.until - time.monotonic()

    def device(self, several: bool = False) -> str:
        """For --device."""
        if not self.gpu:
            return ",".join(["cpu"] * self.gpus) if several else "cpu"
        return "cuda:" + ",".join(map(str, range(self.gpus))) if several else f"cuda:{self.number}"

    def log(self, name: str) -> Path:
        return self.out / f"{self.name}-{name}.log"

    def arguments(self, name: str, device: str) -> list[str]:
        """Of the command line, for models of one engine."""
        given = ["--device", device, "--gateways", "4" if self.gpu else "1"]
        return given if name == models.TORCH else [*given, "--engine", name]

    def repository(self, name: str, model: str, file: Path, most: int) -> Path:
        """A repository with that one model; its folder has the model's name."""
        root = self.folder / "repositories" / f"{self.name}-{name}"
        version = root / model / "1"
        version.mkdir(parents=True, exist_ok=True)
        link = version / f"model{file.suffix}"
        link.unlink(missing_ok=True)
        link.symlink_to(file.absolute())
        text = f"max_batch_size: {most}\ndynamic_batching {{ max_queue_delay_microseconds: 500 }}\n"
        if self.gpu:
            text += f"instance_group [{{ count: {engine.SLOTS} }}]\n"
        (version.parent / "config.pbtxt").write_text(text)
        return root


def versions(engines: list[str]) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in engines:
        for package in (name, "onnxruntime-gpu"):
            with contextlib.suppress(PackageNotFoundError):
                found.setdefault(name, f"{package} {version(package)}")
    return found


def prepare(part: Part) -> None:
    """Make what is missing."""
    folder = part.folder
    folder.mkdir(parents=True, exist_ok=True)
    makers: list[tuple[str, Path, Callable[[Path], None]]] = [
        ("resnet50", models.path_of(folder, "fp16"), models.make_plain),
        ("minilm", minilm.path_of(folder, "onnxruntime"), minilm.make_onnx),
    ]
    if models.TORCH in part.engines:
        makers += [
            ("minilm.pt2", minilm.path_of(folder, models.TORCH), minilm.make_program),
            ("resnet50.pt2", models.path_of(folder, "", models.TORCH), models.make_program),
        ]
    for name, path, make in makers:
        began = time.monotonic()
        if not path.is_file():
            try:
                make(folder)
            except Exception:
                path.unlink(missing_ok=True)
                part.keep(**{f"{name} failed": traceback.format_exc()[-TAIL:]})
        part.keep(**{name: round(time.monotonic() - began, 1)})


def run_part(given: argparse.Namespace) -> int:
    """One part, in this process."""
    part = Part(given.part, given)
    part.keep()
    if given.part == "prepare":
        prepare(part)
    else:
        import_module(f"loadtests.gpu.{given.part}").measure(part)
    part.keep(done=True)
    return 0


def run_all(given: argparse.Namespace) -> int:
    """All parts that are asked for; status 1 where one has failed."""
    given.out.mkdir(parents=True, exist_ok=True)
    until, beside = time.monotonic() + 60 * given.minutes, None
    told: dict[str, bool] = {}
    for name in [each for each in LIMITS if each in given.parts]:
        apart = name == BESIDE and given.gpus > 1 and not given.device.startswith("cpu")
        number = given.gpus - 1 if apart else 0
        limit = min(LIMITS[name], until - time.monotonic())
        if limit < 20:
            print(f"{name}: left out, for there is no time left")
            told[name] = False
        elif apart:
            beside = threading.Thread(target=_noted, args=(told, name, given, limit, number))
            beside.start()
        else:
            _noted(told, name, given, limit, number)
    if beside is not None:
        beside.join()
    print("\n" + ", ".join(f"{name}: {'done' if ok else 'FAILED'}" for name, ok in told.items()))
    return int(not all(told.values()))


def _noted(
    told: dict[str, bool], name: str, given: argparse.Namespace, limit: float, number: int
) -> None:
    try:
        told[name] = _child(name, given, limit, number)
    except Exception as error:
        told[name] = False
        _fail(given.out / f"{name}.json", repr(error), 0.0)


def _child(name: str, given: argparse.Namespace, limit: float, number: int) -> bool:
    """Whether the part was done; else its file says what its process said last."""
    log, result, began = given.out / f"{name}.txt", given.out / f"{name}.json", time.monotonic()
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "loadtests.gpu", "part", name]
    command += ["--models", str(given.models), "--out", str(given.out), "--device", given.device]
    command += ["--gpus", str(given.gpus), "--number", str(number), "--limit", str(limit)]
    command += ["--seconds", str(given.seconds), "--cycles", str(given.cycles)]
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = -1
        _end(process)
    took = time.monotonic() - began
    print(f"{name}: {'done' if status == 0 else 'FAILED'} in {took:.0f} s", flush=True)
    if status == 0:
        return True
    words = log.read_text(errors="replace")[-TAIL:]
    _fail(result, f"ended with {status} after {took:.0f} of {limit:.0f} s\n{words}", took)
    print(words, flush=True)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it started and left behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            if number == signal.SIGTERM and process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
    process.wait()


def _fail(result: Path, words: str, took: float) -> None:
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(result.read_text())
    result.write_text(json.dumps(found | {"failed": words, "took_s": round(took)}, indent=2))
