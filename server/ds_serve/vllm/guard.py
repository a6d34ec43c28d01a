"""Stands between the supervisor and vLLM, which is a family of processes.

A vLLM server that is killed leaves its engine behind, with the GPU's memory. So this process holds
all of them: whatever vLLM starts stays in our process group or falls to us when its parent dies,
and when the server or the supervisor is gone, however it went, all of it is killed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from ds_serve.child import FAILURE_FILE, PERMANENT
from ds_serve.logs import LogSettings
from ds_serve.process_guard import die_with_parent
from ds_serve.vllm import downloads, told

log = logging.getLogger(__name__)

PROC = Path("/proc")
KEPT_LINES = 400
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_BREAK = re.compile(rb"[\r\n]")
_NOT_PASSED = ("PROMETHEUS_MULTIPROC_DIR", FAILURE_FILE)
"""Our own: vLLM would write its metrics among ours."""

_LEVELS = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.ERROR}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor wants run. `environment` is added to our own; `progress` is the file
    that is to say how far the start-up is. `hub`: the id of a model of the hub.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    progress: str
    parent_pid: int
    logs: LogSettings = LogSettings()
    hub: str = ""


class Guard:
    """Runs one vLLM server. `failure`: the file that is to say why it failed."""

    def __init__(self, job: Job, failure: Path | None) -> None:
        self._job = job
        self._name = job.name
        self._failure = failure
        self._progress = Path(job.progress)
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._held = b""
        self._step = ""
        self._started = False
        self._stopping = False
        self._server: subprocess.Popen[bytes] | None = None
        cache = downloads.cache(os.environ | job.environment, job.command)
        self._downloads = downloads.Downloads(job.hub, cache) if job.hub else None

    def run(self) -> int:
        """Until the server has ended, and all that it has started; returns the exit status."""
        _adopt_orphans()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGHUP, self._give_up)
        # The kernel sends SIGHUP when the supervisor is gone: then nobody needs the model.
        die_with_parent(self._job.parent_pid, signal.SIGHUP)
        self._server = subprocess.Popen(
            self._job.command,
            env=_passed(os.environ) | self._job.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_us,  # noqa: PLW1509  there is but one thread here
        )
        try:
            self._listen()
        finally:
            kill_descendants()
        status = self._server.wait()
        return 0 if self._stopping else self._report(status)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        if self._server is not None:
            self._server.terminate()

    def _give_up(self, *_: object) -> None:
        kill_descendants()
        os._exit(1)

    def _listen(self) -> None:
        """What the server prints, until its first process has ended."""
        assert self._server is not None
        assert self._server.stdout is not None
        pipe, ended = self._server.stdout.fileno(), os.pidfd_open(self._server.pid)
        os.set_blocking(pipe, False)
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while True:
            looks = self._downloads is not None and not self._started
            ready = {fd for fd, _ in poll.poll(1000 * downloads.LOOK_SECONDS if looks else None)}
            if self._downloads is not None and looks and (step := self._downloads.step()):
                self._say(step)
            if pipe in ready and not self._take(pipe):
                poll.unregister(pipe)
            if ended in ready:
                self._take(pipe)
                return

    def _take(self, pipe: int) -> bool:
        """Read what is there; False at the end of all output."""
        while True:
            try:
                data = os.read(pipe, 1 << 16)
            except BlockingIOError:
                return True
            *whole, self._held = _BREAK.split(self._held + data)
            for line in whole:
                self._note(line.decode(errors="replace"))
            if not data:
                return False

    def _note(self, printed: str) -> None:
        line = told.read(printed)
        if not line.text.strip():
            return
        self._lines.append(line.text)
        if told.STARTED in line.text:
            self._started = True
            self._say("asking for a first token")
        if not self._started and (step := told.step(line.text)):
            self._say(step)
        if fact := told.fact(line.text):
            log.info("model %s: %s", self._name, fact)
        # What it says while it is well is for who looks for a fault.
        log.log(_importance(line), "vllm: %s", line.text)
        if self._started and told.is_fatal(line.text):
            self._write(self._why())

    def _say(self, step: str) -> None:
        """Tell of a step of the start-up; of percents only tenths, of GB whole ones."""
        if step == self._step:
            return
        name, _, percent = step.partition(", ")
        before, _, reached = self._step.partition(", ")
        self._step = step
        self._progress.write_text(step)
        if name != before or _mark(percent) > _mark(reached):
            log.info("model %s: %s", self._name, step)

    def _why(self, status: int | None = None) -> told.Failure:
        if found := told.failure(list(self._lines)):
            return found
        if status == -signal.SIGKILL:
            said = "vLLM was killed, perhaps by the kernel for want of memory"
        elif status is not None and status < 0:
            said = f"vLLM was killed by {signal.Signals(-status).name}"
        else:
            said = "vLLM ended" + (f" with status {status}" if status is not None else "")
        return told.Failure(f"{said}{self._last_words()}", False)

    def _last_words(self) -> str:
        return f"; it last said: {self._lines[-1][:300]}" if self._lines else ""

    def _report(self, status: int) -> int:
        found = self._why(status)
        self._write(found)
        log.error("%s", found.reason)
        # Once it has answered, another start may go well.
        return PERMANENT if found.permanent and not self._started else 1

    def _write(self, found: told.Failure) -> None:
        if self._failure is not None:
            self._failure.write_text(found.reason)


def _mark(reached: str) -> int:
    """What is worth a line in the log once it is more: of "45 %", or of "1.3 GB so far"."""
    if not reached:
        return -1
    number = float(reached.split(maxsplit=1)[0])
    return int(number // 10 if reached.endswith("%") else number)


def _importance(line: told.Line) -> int:
    """Of a traceback, which comes line by line, the error itself stands at the end."""
    inside = line.text.startswith((" ", "Traceback"))
    return logging.DEBUG if inside else _LEVELS.get(line.level, logging.DEBUG)


def _passed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _NOT_PASSED}


def failure_file() -> Path | None:
    """Where the supervisor reads why."""
    return Path(os.environ[FAILURE_FILE]) if FAILURE_FILE in os.environ else None


def kill_descendants() -> None:
    """End all processes that this one, or a child of it, has started, at any depth, and reap
    those that fall to us: again and again, since one that is being killed may be starting others.
    """
    while found := list(_descendants()):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in found:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _descendants() -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdecimal() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    due = [os.getpid()]
    while due:
        for child in children.get(due.pop(), []):
            yield child
            due.append(child)


def _parent(entry: Path) -> int | None:
    """None for a process that is gone, or dead and waits to be reaped by another."""
    try:
        state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(parent)


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_us() -> None:
    """In the child, before it becomes vLLM: its server dies even where we are killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
