"""Telling an engine that hangs from one that gets too little of the processors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

IDLE = 0.01
"""Processor seconds a second, below which a process waits and does not work."""

_USER, _SYSTEM = 11, 12
"""Places in /proc/PID/stat, behind the command's name."""


def processor_seconds(pid: int) -> float:
    """What all threads of a process have used so far; 0 where that is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / os.sysconf("SC_CLK_TCK")


class Patience:
    """`spent`: the processor seconds that the engine has used so far. It is waited for `timeout`
    seconds, and longer where it works but has not had as many processor seconds since.
    """

    def __init__(self, timeout: float, spent: Callable[[], float]) -> None:
        self._timeout = timeout
        self._spent = spent
        self._silence = 0.0
        self._before = 0.0

    def is_over(self, silence: float) -> bool:
        """`silence`: for how many seconds it has owed an answer."""
        spent = self._spent()
        if silence < self._silence or not silence:
            self._before = spent
        self._silence = silence
        used = spent - self._before
        return silence > self._timeout and not IDLE * silence < used < self._timeout
