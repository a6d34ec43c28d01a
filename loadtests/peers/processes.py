"""A server and all the processes it starts: what they cost, and that none of them stays.

Some servers start daemons that leave their session and lose their parent. Meanwhile this process
is the one that such orphans fall to, so whatever descends from it and was not there before the
server, is the server's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.peers.base import Launch, environment
from loadtests.perf_analyzer import BenchmarkError

PROC = Path("/proc")
STOP_SECONDS = 15.0
KILL_SECONDS = 10.0
TICK = os.sysconf("SC_CLK_TCK")
SET_CHILD_SUBREAPER = 36
TAIL = 1500

Process = tuple[int, int]
"""A process id and its start time, since ids are used again."""


class ServerEnded(BenchmarkError):
    """A server that has ended by itself."""


@dataclass(frozen=True)
class Running:
    """A server's processes. Ask while no other child of this process is alive."""

    process: subprocess.Popen[bytes]
    before: frozenset[Process]
    log: Path

    def members(self) -> set[Process]:
        return descendants() - self.before

    def cpu_seconds(self) -> float:
        """Since the start, of all processes, with those that have ended and were waited for."""
        return sum(sum(_stat(pid)[11:15]) for pid, _ in self.members()) / TICK

    def memory(self) -> int:
        """Bytes resident; a page that several processes share counts once (PSS)."""
        return sum(pss(pid) for pid, _ in self.members())

    def check(self) -> None:
        """Raises ServerEnded where the server has ended by itself."""
        if (status := self.process.poll()) is not None:
            raise ServerEnded(f"it ended with {status}:\n{self.printed()}")

    def printed(self) -> str:
        return self.log.read_text(errors="replace")[-TAIL:].strip()


@contextmanager
def running(launch: Launch, folder: Path, cores: frozenset[int] | None) -> Iterator[Running]:
    """The server, in a session of its own, so that Ctrl-C reaches us first and we stop it.

    Raises BenchmarkError where it cannot be started.
    """
    _adopt_orphans(True)
    before = frozenset(descendants())
    log = folder / "server.log"
    with log.open("wb") as file, pinned(cores):
        try:
            process = subprocess.Popen(
                [*_bound(), *launch.command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(launch),
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            raise BenchmarkError(f"{launch.command[0]}: {error.strerror}") from None
    server = Running(process, before, log)
    try:
        yield server
    finally:
        try:
            _stop(server)
        finally:
            _adopt_orphans(False)


def _stop(server: Running) -> None:
    """Ask the first process to end; whatever the others do, none is left."""
    try:
        if server.process.poll() is None:
            server.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(STOP_SECONDS)
    finally:
        _kill(server)


def _kill(server: Running) -> None:
    until = time.monotonic() + KILL_SECONDS
    while (left := server.members()) and time.monotonic() < until:
        for pid, _ in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        for pid, _ in left:
            if pid != server.process.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
    server.process.wait(KILL_SECONDS)


def descendants() -> set[Process]:
    """All processes that this one, or a child of it, has started, at any depth."""
    children: dict[int, list[Process]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(fields[1], []).append((int(entry.name), fields[19]))
    found: set[Process] = set()
    queue = [os.getpid()]
    while queue:
        for child in children.get(queue.pop(), []):
            found.add(child)
            queue.append(child[0])
    return found


ALL_CORES = frozenset(os.sched_getaffinity(0))
"""Those that this program may use, and what it starts: all, unless it was started on some alone."""


def busy_seconds(cores: frozenset[int] = ALL_CORES) -> float:
    """CPU seconds that all programs have had on these cores."""
    wanted = {f"cpu{core}" for core in cores}
    lines = (line.split() for line in (PROC / "stat").read_text().splitlines())
    return sum(sum(map(int, line[1:4])) for line in lines if line[0] in wanted) / TICK


def share_of_others(seconds: float, cores: frozenset[int] = ALL_CORES) -> float:
    """The part of these cores that is in use now, 0 to 1, measured for some `seconds`."""
    used, begun = busy_seconds(cores), time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - begun
    return (busy_seconds(cores) - used) / elapsed / len(cores)


@contextmanager
def pinned(cores: frozenset[int] | None) -> Iterator[None]:
    """What is started meanwhile runs on these `cores` alone."""
    if cores is None:
        yield
        return
    ours = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        raise BenchmarkError(f"cores {sorted(cores)}: {error.strerror}") from None
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def _bound() -> list[str]:
    """Where util-linux has it: the server is told to end even when we are killed."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def _adopt_orphans(adopt: bool) -> None:
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _stat(pid: int) -> list[int]:
    """The numbers of /proc/PID/stat from the state on, which is 0; nothing of a zombie."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    state, *numbers = text.rpartition(")")[2].split()
    return [0, *map(int, numbers)] if state not in "ZX" else []


def pss(pid: int) -> int:
    """Bytes resident of one process, its part of shared pages; 0 where it is gone."""
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
