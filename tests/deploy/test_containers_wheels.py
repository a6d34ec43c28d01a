"""Whether all that serving needs can be installed on aarch64: the package index is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
# Debian 12 and later, Ubuntu 22.04 and later: OpenVINO's wheels for aarch64 ask for glibc 2.35.
PLATFORM = "aarch64-manylinux_2_35"


def dry_run(
    folder: Path, python: str, *requirements: str | Path, platform: str = PLATFORM
) -> subprocess.CompletedProcess[str]:
    command = [UV, "pip", "install", "--dry-run", "--no-deps", "--only-binary", ":all:"]
    command += ["--python-platform", platform, "--python-version", python]
    command += ["--target", folder, *requirements]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def _index(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = dry_run(tmp_path_factory.mktemp("probe"), "3.12", "idna")
    if done.returncode:
        pytest.skip(f"no package index answers: {done.stderr.strip().splitlines()[-1]}")


@pytest.mark.slow
@pytest.mark.usefixtures("_index")
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_serving_package_has_a_wheel_for_aarch64(python: str, tmp_path: Path) -> None:
    lock = ROOT / "requirements" / "serve.txt"
    done = dry_run(tmp_path, python, "-r", lock)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("_index")
def test_older_systems_are_told_apart(tmp_path: Path) -> None:
    lock = ROOT / "requirements" / "serve.txt"
    done = dry_run(tmp_path, "3.12", "-r", lock, platform="aarch64-manylinux_2_28")
    assert done.returncode != 0
    assert "openvino" in done.stderr
