"""The machine in words, and how much of it other programs took."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from loadtests.report import processor

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("onnxruntime", "openvino", "openvino-genai", "grpcio", "uvicorn", "numpy")


def described(others: float) -> str:
    """One paragraph. `others`: the share of the machine, 0 to 1, that is in use beforehand."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"{name} {number}" for name in PACKAGES if (number := _version(name))]
    return (
        f"{processor()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores for server, "
        f"engine and load generator together, {memory:.0f} GiB of memory, {_system()}, kernel "
        f"{platform.release().partition('-')[0]}; Python {platform.python_version()}, "
        f"ds-serve {_version('ds-serve')}{_commit()}, {', '.join(versions)}. Before the start "
        f"other programs took {others:.0%} of the machine, load average {os.getloadavg()[0]:.1f}."
    )


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""
