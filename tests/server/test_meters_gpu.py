"""What NVML says of the GPUs of this machine, in the server's metrics."""

from __future__ import annotations

import pytest

from ds_serve import metrics
from ds_serve.supervisor import meters


def test_memory_and_utilization_of_every_gpu_are_told() -> None:
    nvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    gpus = meters.Gpus(meters._nvml())
    gpus.sample()
    found = {
        (sample.name, sample.labels["gpu_uuid"]): sample.value
        for gauge in (metrics.gpu_memory_total, metrics.gpu_memory_used, metrics.gpu_utilization)
        for family in gauge.collect()
        for sample in family.samples
    }
    assert len(found) == 3 * nvml.nvmlDeviceGetCount()
    for (name, uuid), value in found.items():
        assert uuid.startswith("GPU-"), uuid
        if name.endswith("total_bytes"):
            assert value > 1 << 30
        elif name.endswith("utilization"):
            assert 0 <= value <= 1
