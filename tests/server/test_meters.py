"""What the machine is said to be doing, by the metrics."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from ds_serve import metrics
from ds_serve.supervisor.meters import Gpus, Machine

STAT = "cpu  {user} 0 {system} {idle} 0 0 0 0 0 0\ncpu0 1 2 3 4\n"
MEMORY = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 250 kB\nHugePages_Total: 0\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "stat").write_text(STAT.format(user=100, system=0, idle=900))
    (tmp_path / "meminfo").write_text(MEMORY)
    return tmp_path


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_processors_and_memory(proc: Path) -> None:
    machine = Machine(proc)
    (proc / "stat").write_text(STAT.format(user=160, system=15, idle=925))
    machine.sample()
    assert value("nv_cpu_utilization") == pytest.approx(0.75)
    assert value("nv_cpu_memory_total_bytes") == 1000 * 1024
    assert value("nv_cpu_memory_used_bytes") == 750 * 1024
    machine.sample()
    assert value("nv_cpu_utilization") == 0


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    metrics.cpu_utilization.set(0.5)
    Machine(tmp_path / "nothing").sample()
    assert value("nv_cpu_utilization") == 0.5


class Refused(Exception):
    """What NVML raises."""


class Nvml:
    """Two cards as NVML describes them; the second one knows nothing of its energy."""

    NVMLError = Refused

    def __init__(self) -> None:
        self.joules = 5000.0

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return b"GPU-%d" % handle

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=80 << 30, used=(8 + handle) << 30)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=40 + handle, memory=7)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 350_000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return 700_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> float:
        if handle:
            raise Refused("not supported")
        return self.joules * 1000


def test_gpus() -> None:
    nvml = Nvml()
    gpus = Gpus(nvml)
    gpus.sample()
    nvml.joules += 700
    gpus.sample()
    assert value("nv_gpu_utilization", gpu_uuid="GPU-0") == 0.4
    assert value("nv_gpu_utilization", gpu_uuid="GPU-1") == 0.41
    assert value("nv_gpu_memory_total_bytes", gpu_uuid="GPU-1") == 80 << 30
    assert value("nv_gpu_memory_used_bytes", gpu_uuid="GPU-1") == 9 << 30
    assert value("nv_gpu_power_usage", gpu_uuid="GPU-0") == 350
    assert value("nv_gpu_power_limit", gpu_uuid="GPU-0") == 700
    assert value("nv_energy_consumption_total", gpu_uuid="GPU-0") == 700
    assert value("nv_energy_consumption_total", gpu_uuid="GPU-1") is None


def test_without_gpus_there_is_nothing_to_measure() -> None:
    Gpus(None).sample()
