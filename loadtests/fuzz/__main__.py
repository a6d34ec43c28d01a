"""Fuzz a server, print what was answered, and end with 0 if it is none the worse, 1 if it is.

python -m loadtests.fuzz --minutes 10
python -m loadtests.fuzz --minutes 10 --model smollm2-135m-instruct    beside the tiny model
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from rich.console import Console

from loadtests.fuzz import calls, http
from loadtests.fuzz.outcome import Outcome
from loadtests.load import memory
from loadtests.load.memory import Sampler
from loadtests.model import write
from loadtests.perf_analyzer import BenchmarkError
from loadtests.server import Server, running

SAMPLE_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    # Ended by a signal, it still stops the server.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = random.randrange(2**31) if given.seed is None else given.seed
    try:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            findings = _run(given, seed, Path(folder), console)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    for finding in findings:
        console.print(finding, markup=False)
    console.print(f"failed; --seed {seed}" if findings else "passed")
    return 1 if findings else 0


def _run(given: argparse.Namespace, seed: int, folder: Path, console: Console) -> list[str]:
    write(folder / "mlp.onnx")
    flags = [flag for model in given.model for flag in ("--model", model)]
    names = ["mlp", *(model.partition("=")[0] for model in given.model)]
    log, before = folder / "log", memory.children()
    with running(f"mlp={folder / 'mlp.onnx'}", [*flags, *given.serve.split()], log) as server:
        pid = memory.new_child(before)
        if pid is None:
            raise BenchmarkError("the server's process is not to be found")
        processes, sampler = _processes(pid), Sampler(pid)
        seconds = given.minutes * 60
        console.print(f"{given.minutes:g} min of {', '.join(names)}, seed {seed}")
        grpc, rest = _both(server, seconds, seed, names, folder, sampler)
        console.print(f"HTTP: {rest}\ngRPC: {grpc}\nmemory: {_grown(sampler)}")
        findings = [*rest.findings, *grpc.findings]
        findings += _after(server, names) + _changed(processes, _processes(pid))
    said = log.read_text(errors="replace")
    if "Traceback" in said:
        findings.append("the log has a traceback:\n" + said[said.index("Traceback") - 500 :][:3000])
    return findings


def _both(
    server: Server, seconds: float, seed: int, names: list[str], folder: Path, sampler: Sampler
) -> tuple[Outcome, Outcome]:
    """gRPC and HTTP at once, with a look at the memory now and then."""
    url = f"http://{server.http}"
    over = threading.Event()
    tasks: list[Callable[[], Outcome]] = [
        lambda: calls.fuzz(server.grpc, seconds, seed, names, over),
        lambda: http.fuzz(url, seconds, seed, names, folder, over),
    ]
    with ThreadPoolExecutor(3) as pool:
        pool.submit(_sample, sampler, over)
        found: list[Future[Outcome]] = [pool.submit(task) for task in tasks]
        try:
            return found[0].result(), found[1].result()
        finally:
            over.set()


def _sample(sampler: Sampler, over: threading.Event) -> None:
    sampler.sample()
    while not over.wait(SAMPLE_SECONDS):
        sampler.sample()


def _grown(sampler: Sampler) -> str:
    sampler.sample()
    sizes = sampler.sizes
    return f"{sizes[0]:.0f} MiB at the start, {max(sizes):.0f} at most, {sizes[-1]:.0f} in the end"


def _after(server: Server, models: list[str]) -> list[str]:
    """What the server does not answer any more."""
    silent = [name for name in models if calls.metadata(server.grpc, name) is None]
    if calls.right_request(server.grpc, models[0]) is None:
        silent.append(f"a request to {models[0]}")
    return [f"not answered afterwards: {', '.join(silent)}"] if silent else []


def _processes(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def _changed(before: set[int], after: set[int]) -> list[str]:
    if before == after:
        return []
    return [f"processes ended: {sorted(before - after)}, came: {sorted(after - before)}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.fuzz", description="Fuzz a ds-serve started for this."
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for how long (default: 10)")
    parser.add_argument(
        "--model", action="append", default=[], help="one more for ds-serve; may be repeated"
    )
    parser.add_argument("--seed", type=int, help="a failed run's, to repeat it")
    parser.add_argument("--serve", default="", help="more of ds-serve's flags, as one word")
    return parser


if __name__ == "__main__":
    sys.exit(main())
