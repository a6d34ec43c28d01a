"""Which GPUs a machine has: by its variables, its device files and, last, NVIDIA's driver.

What stands in for a machine are those inputs alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_serve import tensor_engines
from ds_serve.vllm import devices

NVIDIA = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm")
AMD = ("kfd", "dri/renderD128", "dri/renderD129", "dri/card0")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (devices.VISIBLE, devices.VISIBLE_ROCM):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "_driver_says", lambda: 0)


def machine(folder: Path, files: tuple[str, ...]) -> Path:
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("files", "found", "rocm"),
    [
        ((), [], False),
        (NVIDIA, ["0", "1"], False),
        (AMD, ["0", "1"], True),
        (AMD[1:], [], False),  # cards for pictures alone
        ((*NVIDIA, *AMD), ["0", "1"], False),
    ],
)
def test_device_files(tmp_path: Path, files: tuple[str, ...], found: list[str], rocm: bool) -> None:
    there = machine(tmp_path, files)
    assert devices.visible(there) == found
    assert devices.is_rocm(there) is rocm


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({devices.VISIBLE: "1"}, ["1"]),
        ({devices.VISIBLE: ""}, []),
        ({devices.VISIBLE: "-1"}, []),
        ({devices.VISIBLE_ROCM: "0, 2"}, ["0", "2"]),
        ({devices.VISIBLE: "3", devices.VISIBLE_ROCM: "0"}, ["3"]),
    ],
)
def test_variables_come_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    found: list[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert devices.visible(machine(tmp_path, AMD)) == found


def test_a_container_without_device_files_is_asked_through_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_driver_says", lambda: 2)
    assert devices.visible(tmp_path) == ["0", "1"]


def test_an_amd_machine_has_no_tensorrt_and_its_gpus_are_called_rocm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, config = machine(tmp_path, AMD), tmp_path / "config.pbtxt"
    config.write_text("instance_group { kind: KIND_GPU gpus: [0, 1] }")
    monkeypatch.setenv(devices.VISIBLE_ROCM, "0,1")
    monkeypatch.setattr(devices, "is_rocm", lambda real=devices.is_rocm: real(there))
    assert tensor_engines.missing().startswith("there is no NVIDIA GPU here")
    for engine in tensor_engines.ON_GPUS:
        assert tensor_engines.devices_of(engine, "auto", config) == ["rocm:0", "rocm:1"]
        assert tensor_engines.devices_of(engine, "rocm:1", config) == ["rocm:1"]
    assert tensor_engines.devices_of("openvino", "auto", config) == ["cpu"]
