"""A ds-serve process for the length of a measurement."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ds_client import AsyncClient, ClientError
from ds_engines.config_message import AXIS
from ds_engines.spec import TensorSpec
from ds_profile.errors import ProfileError
from ds_proto.model_config_pb2 import ModelConfig
from ds_serve.supervisor import cpus

START_SECONDS = 120.0
STOP_SECONDS = 30.0
BUSY = 0.5
"""Load average for each processor from which on measurements are disturbed."""

_READY = re.compile(r"^ds-serve is ready: HTTP http://(\S+) \(docs at \S+\), gRPC (\S+)$", re.M)
_LAUNCH = """\
import os, sys
from ds_serve.process_guard import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
from ds_serve.cli import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Server:
    """Where it listens, as host:port."""

    http: str
    grpc: str


@dataclass(frozen=True)
class Model:
    """What a running server says of a model."""

    name: str
    inputs: tuple[TensorSpec, ...]
    config: ModelConfig

    @property
    def batched(self) -> bool:
        return self.config.HasField("dynamic_batching")


@contextmanager
def running(models: Sequence[str], flags: Sequence[str] = ()) -> Iterator[Server]:
    """ds-serve with `models` (as --model takes them) on free ports, stopped in the end.

    Its processes also end with this one, however that ends. Raises ProfileError where the server
    does not become ready, with what it said.
    """
    command = [sys.executable, "-c", _LAUNCH, str(os.getpid())]
    for model in models:
        command += ["--model", model]
    command += ["--http-port", "0", "--grpc-port", "0", "--log-level", "warning", *flags]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield _wait(process, log)
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], log: IO[str]) -> Server:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        ended = process.poll() is not None
        if found := _READY.search(_said(log)):
            return Server(*found.groups())
        if ended:
            raise ProfileError(f"ds-serve ended before it was ready:\n{_said(log)[-2000:]}")
        time.sleep(0.05)
    raise ProfileError(f"ds-serve was not ready after {START_SECONDS:g} s:\n{_said(log)[-2000:]}")


def _said(log: IO[str]) -> str:
    return os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def describe(server: Server, name: str) -> Model:
    """Raises ProfileError where the server does not know the model, or it takes no tensors."""
    try:
        async with AsyncClient(server.grpc) as client:
            info, config = await client.metadata(name), await client.config(name)
    except ClientError as error:
        raise ProfileError(f"ds-serve does not describe model {name!r}: {error}") from None
    if config.model_transaction_policy.decoupled:
        raise ProfileError(f"model {name!r} writes text; only tensor models are profiled")
    inputs = tuple(
        TensorSpec(t.name, t.datatype, t.shape, _batch_axis(config, t.name)) for t in info.inputs
    )
    return Model(name, inputs, config)


def _batch_axis(config: ModelConfig, tensor: str) -> int | None:
    if config.max_batch_size:
        return 0
    named = config.parameters[AXIS + tensor].string_value if config.parameters else ""
    return int(named) if named.isdecimal() else None


async def mean_batch(server: Server, name: str, before: tuple[int, int] = (0, 0)) -> float:
    """Rows of a batch, on average since `before`."""
    rows, executions = await executed(server, name)
    return (rows - before[0]) / max(1, executions - before[1])


async def executed(server: Server, name: str) -> tuple[int, int]:
    """Rows and batches that the engine has run. Raises ProfileError."""
    try:
        async with AsyncClient(server.grpc) as client:
            (statistics,) = await client.statistics(name)
    except ClientError as error:
        raise ProfileError(f"ds-serve gives no statistics: {error}") from None
    return statistics.rows, statistics.executions


def busy_with_others() -> str:
    """A warning, before anything is started, where the machine has much else to do."""
    load = os.getloadavg()[0]
    if load < BUSY * cpus.available():
        return ""
    return f"The machine is busy with other work (load average {load:.1f}): figures will be noisy."


def ds_serve_flags(trace_file: Path, rate: int) -> list[str]:
    """The flags that make a server write traces."""
    return ["--trace-file", str(trace_file), "--trace-rate", str(rate)]
