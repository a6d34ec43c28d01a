"""Which GPUs this machine has, as far as that shows without a GPU library."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

DEVICES = Path("/dev")
VISIBLE = "CUDA_VISIBLE_DEVICES"
VISIBLE_ROCM = "HIP_VISIBLE_DEVICES"


def visible(devices: Path = DEVICES) -> list[str]:
    """What CUDA or ROCm may use, each by the name that the *_VISIBLE_DEVICES variables take."""
    for variable in (VISIBLE, VISIBLE_ROCM):
        if variable in os.environ:
            named = os.environ[variable].split(",")
            return [name.strip() for name in named if name.strip() not in ("", "-1")]
    nodes = [path for path in devices.glob("nvidia[0-9]*") if path.name[6:].isdecimal()]
    return [str(index) for index in range(len(nodes) or _driver_says() or len(_amd(devices)))]


def is_rocm(devices: Path = DEVICES) -> bool:
    """Whether the GPUs are AMD's."""
    return (devices / "kfd").exists() and not any(devices.glob("nvidia[0-9]*"))


def _driver_says() -> int:
    """How many cards NVIDIA's driver knows: a container may name their files otherwise."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    if library.nvmlInit_v2() != 0:
        return 0
    count = ctypes.c_uint()
    known = library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    library.nvmlShutdown()
    return count.value if known else 0


def _amd(devices: Path) -> list[Path]:
    if not (devices / "kfd").exists():
        return []
    return list((devices / "dri").glob("renderD*"))
