"""Memory of GPUs and of processes, and which processes a server has."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

MB = 1_000_000
NVIDIA_SMI = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]


def gpu_memory() -> list[int]:
    """Bytes in use on each GPU, by NVML; empty where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles]
    except Exception:
        return _smi()


def _smi() -> list[int]:
    try:
        said = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) << 20 for line in said.stdout.split()]


def family(pid: int) -> dict[int, str]:
    """The process's descendants, with their command lines."""
    parents: dict[int, list[int]] = {}
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (each / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(each.name))
    found, waiting = {}, [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{child}/cmdline").read_bytes()
                found[child] = line.replace(b"\0", b" ").decode(errors="replace")
            waiting.append(child)
    return found


def workers(pid: int) -> list[int]:
    """Engine workers of a server."""
    return [child for child, line in family(pid).items() if "ds_serve.worker" in line]


def host_memory(pid: int) -> int:
    """Bytes that a server and its children hold, each page once."""
    total = 0
    for each in (pid, *family(pid)):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total
