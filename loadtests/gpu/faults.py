"""What goes wrong while a model serves: wrong requests, a full device, a killed worker."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ds_client import Client, ClientError
from loadtests import server
from loadtests.gpu import models
from loadtests.gpu.machine import gpu_memory, workers
from loadtests.gpu.parts import Part

MODEL, KIND, ROWS = "resnet50", "tf32", 8
LEFT_MB = 600
"""Of device memory that the other process leaves free."""

BACK_SECONDS = 60.0


class Load:
    """Threads that send one request after the other, none of them twice. `failures`: what those
    that failed were told, and how often; `answered`: when each of the others had its answer.
    """

    def __init__(self, address: str, batch: models.Batch, threads: int) -> None:
        self._address, self._batch = address, batch
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        self.answered: list[float] = []
        self.failures: Counter[str] = Counter()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        _until(lambda: len(self.answered) > 5, "nothing is answered")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        with Client(self._address, timeout=30, retry=None) as client:
            while not self._stop.is_set():
                try:
                    client.infer(MODEL, self._batch)
                    self.answered.append(time.monotonic())
                except ClientError as error:
                    self.failures[str(error)[:200]] += 1
                    time.sleep(0.05)

    def told(self) -> dict[str, Any]:
        times = sorted(self.answered)
        longest = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
        return {
            "answered": len(times), "failed": sum(self.failures.values()),
            "longest_gap_s": round(longest, 2), "failures": dict(self.failures.most_common(5)),
        }  # fmt: skip


def measure(part: Part) -> None:
    part.keep(kinds={})
    for name in part.engines:
        found: dict[str, Any] = {}
        try:
            _faults(part, name, found)
        except Exception as error:
            found["failed"] = f"{type(error).__name__}: {error}"[-2000:]
        part.keep(kinds=part.found["kinds"] | {name: found})


def _faults(part: Part, name: str, found: dict[str, Any]) -> None:
    most = 128 if part.gpu else 16
    root = part.repository(name, MODEL, models.path_of(part.folder, KIND, name), most)
    given = ["--model-repository", str(root), *part.arguments(name, part.device())]
    given += ["--model-control-mode", "explicit", "--open-control"]
    with (
        server.started(given, part.log(name)) as there,
        Client(there.grpc, timeout=120, retry=None) as client,
    ):
        client.load(MODEL)
        steps: dict[str, Callable[[], Any]] = {
            "wrong requests": lambda: _wrong(part, name, client, most),
            "full device": lambda: _full(part, name, client, there, most),
            "killed worker": lambda: _killed(part, name, there),
            "reload under load": lambda: _reloaded(part, name, client, there),
        }
        wanted = _answer(client, models.batch(part.folder, name, MODEL, ROWS))
        for title, step in steps.items():
            try:
                found[title] = step()
            except Exception as error:
                found[title] = {"failed": f"{type(error).__name__}: {error}"[-1500:]}
            found[title] |= _afterwards(part, name, client, wanted)
            part.keep(kinds=part.found["kinds"] | {name: found})


def _answer(client: Client, batch: models.Batch) -> Any:
    (answer,) = client.infer(MODEL, batch).values()
    return answer


def _afterwards(part: Part, name: str, client: Client, wanted: Any) -> dict[str, Any]:
    """Whether the service is as it was."""
    try:
        given = _answer(client, models.batch(part.folder, name, MODEL, ROWS))
    except ClientError as error:
        return {"afterwards": f"fails: {error}"}
    off = float(np.abs(given - wanted).max() / np.abs(wanted).max())
    return {"afterwards": "answers as before" if off < 0.01 else f"is {off:.4f} off"}


def _wrong(part: Part, name: str, client: Client, most: int) -> dict[str, Any]:
    ((tensor, right),) = models.batch(part.folder, name, MODEL, 2).items()
    requests = {
        "other size": {tensor: right[:, :, :100]},
        "other type": {tensor: right.astype(np.float64)},
        "other name": {"nobody": right},
        "too many rows": {tensor: np.resize(right, (most + 1, *right.shape[1:]))},
    }
    found = {}
    for title, request in requests.items():
        try:
            client.infer(MODEL, request)
            found[title] = "was ANSWERED"
        except ClientError as error:
            found[title] = str(error)[:200]
    return found


def _full(part: Part, name: str, client: Client, there: server.Server, most: int) -> dict[str, Any]:
    """The largest batch while another process has nearly all of the device."""
    if not part.gpu:
        return {"left out": "it takes a GPU"}
    before, batch = workers(there.pid), models.batch(part.folder, name, MODEL, most)
    with _hog(part.number, LEFT_MB) as left:
        found: dict[str, Any] = {"free_mb": left, "memory": gpu_memory()}
        try:
            found["answer"] = f"{len(_answer(client, batch))} rows"
        except ClientError as error:
            found["answer"] = str(error)[:300]
        try:
            found["two rows"] = f"{len(_answer(client, {n: a[:2] for n, a in batch.items()}))} rows"
        except ClientError as error:
            found["two rows"] = str(error)[:300]
    found["the worker lived on"] = workers(there.pid) == before
    found["largest batch then"] = f"{len(_answer(client, batch))} rows"
    return found


@contextlib.contextmanager
def _hog(device: int, leave_mb: int) -> Iterator[str]:
    command = [sys.executable, "-m", "loadtests.gpu.hog", str(device), str(leave_mb)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None, "it is a pipe"
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()
    time.sleep(1)  # the driver takes a moment to give its memory back


def _killed(part: Part, name: str, there: server.Server) -> dict[str, Any]:
    batch = models.batch(part.folder, name, MODEL, ROWS)
    with Load(there.grpc, batch, 4) as load:
        (worker,) = workers(there.pid)
        os.kill(worker, signal.SIGKILL)
        killed = time.monotonic()
        _until(lambda: any(at > killed + 1 for at in load.answered), "it does not come back")
        time.sleep(1)
    back = min(at for at in load.answered if at > killed + 1) - killed
    return load.told() | {
        "back_s": round(back, 2),
        "other worker": worker not in workers(there.pid),
    }


def _reloaded(part: Part, name: str, client: Client, there: server.Server) -> dict[str, Any]:
    """Twice: nothing may fail."""
    batch, took = models.batch(part.folder, name, MODEL, ROWS), []
    with Load(there.grpc, batch, 4) as load:
        for _ in range(2):
            (before,) = workers(there.pid)
            began = time.monotonic()
            client.load(MODEL)
            took.append(round(time.monotonic() - began, 2))
            _until(partial(_gone, before, there), "the old worker stays")
        time.sleep(1)
    return load.told() | {"reload_s": took}


def _gone(worker: int, there: server.Server) -> bool:
    return worker not in workers(there.pid)


def _until(holds: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + BACK_SECONDS
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} within {BACK_SECONDS:.0f} s")
        time.sleep(0.05)
