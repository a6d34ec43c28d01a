"""What the machine itself is doing: processors, memory, GPUs. Measured now and then.

GPUs are asked by NVML where its Python binding (nvidia-ml-py, which vLLM brings along) is installed
and a driver answers; without, there are no metrics of GPUs.
"""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

from ds_serve import metrics

log = logging.getLogger(__name__)

SECONDS = 2.0
PROC = Path("/proc")

Ticks = tuple[int, int]
"""Of all processors since the machine started: busy ones, and all."""


async def measure() -> None:
    """Measure until cancelled."""
    machine, gpus = Machine(), Gpus(_nvml())
    while True:
        machine.sample()
        gpus.sample()
        await asyncio.sleep(SECONDS)


class Machine:
    """Processors and memory, by what Linux says in `proc`; nothing where there is no such thing."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._ticks = self._read_ticks()

    def sample(self) -> None:
        before, self._ticks = self._ticks, self._read_ticks()
        if self._ticks is None or before is None:
            return
        busy, passed = self._ticks[0] - before[0], self._ticks[1] - before[1]
        metrics.cpu_utilization.set(busy / passed if passed > 0 else 0.0)
        memory = self._memory()
        if {"MemTotal", "MemAvailable"} <= memory.keys():
            metrics.cpu_memory_total.set(memory["MemTotal"])
            metrics.cpu_memory_used.set(memory["MemTotal"] - memory["MemAvailable"])

    def _read_ticks(self) -> Ticks | None:
        try:
            first = (self._proc / "stat").read_text().partition("\n")[0]
        except OSError:
            return None
        # user nice system idle iowait irq softirq steal; guests are in user and nice already.
        user, nice, system, idle, waiting, *others = map(int, first.split()[1:9])
        busy = user + nice + system + sum(others)
        return busy, busy + idle + waiting

    def _memory(self) -> dict[str, int]:
        """Bytes by name."""
        try:
            lines = (self._proc / "meminfo").read_text().splitlines()
        except OSError:
            return {}
        pairs = (line.split(":", 1) for line in lines if ":" in line)
        return {name: int(value.split()[0]) * 1024 for name, value in pairs}


class Gpus:
    """All GPUs that `nvml` knows, an initialized pynvml; None: there are none."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._handles: dict[str, Any] = {}
        self._energy: dict[str, float] = {}
        if nvml is not None:
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                self._handles[_text(nvml.nvmlDeviceGetUUID(handle))] = handle

    def sample(self) -> None:
        for uuid, handle in self._handles.items():
            self._sample(uuid, handle)

    def _sample(self, uuid: str, handle: Any) -> None:
        """A card that does not know something (many know no energy) is not asked to the end."""
        nvml = self._nvml
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            metrics.gpu_memory_total.labels(uuid).set(memory.total)
            metrics.gpu_memory_used.labels(uuid).set(memory.used)
            used = nvml.nvmlDeviceGetUtilizationRates(handle)
            metrics.gpu_utilization.labels(uuid).set(used.gpu / 100)
            metrics.gpu_power.labels(uuid).set(nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
            limit = nvml.nvmlDeviceGetEnforcedPowerLimit(handle)
            metrics.gpu_power_limit.labels(uuid).set(limit / 1000)
            self._count_energy(uuid, nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)
        except nvml.NVMLError as error:
            log.debug("GPU %s: %s", uuid, error)

    def _count_energy(self, uuid: str, joules: float) -> None:
        """NVML counts from when the driver was loaded, we from the server's start."""
        before = self._energy.get(uuid, joules)
        self._energy[uuid] = joules
        metrics.gpu_energy.labels(uuid).inc(max(0.0, joules - before))


def _nvml() -> Any:
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
    except Exception as error:
        log.debug("no metrics of GPUs: %s", error)
        return None
    return nvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
