"""A child process that dies with its parent, however the parent dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel kill this process once `parent_pid`, its parent, is gone; or send it another
    signal, on which it ends by itself.

    Call it first thing in the child, from its main thread. A parent that died before the call
    is noticed by asking for the parent afterwards, so no moment is uncovered. Only Linux has
    this; elsewhere the call does nothing.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os.write(2, f"not a child of process {parent_pid}: ending\n".encode())
        os._exit(1)
