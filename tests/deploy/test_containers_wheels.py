"""Whether what is pinned can be installed where it is meant to be: the package index is asked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
SERVE, LOCKS = "requirements/serve.txt", "deploy/containers/locks"
# Debian 12 and later, Ubuntu 22.04 and later: OpenVINO's wheels for aarch64 ask for glibc 2.35.
OLDEST = "aarch64-manylinux_2_35"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_index")]


def dry_run(
    folder: Path, python: str, platform: str, *requirements: str
) -> subprocess.CompletedProcess[str]:
    command = [UV, "pip", "install", "--dry-run", "--no-deps", "--only-binary", ":all:"]
    command += ["--python-platform", platform, "--python-version", python]
    command += ["--target", folder, *requirements]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def files(*names: str) -> list[str]:
    return [word for name in names for word in ("-r", name)]


@pytest.fixture(scope="module")
def _index(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = dry_run(tmp_path_factory.mktemp("probe"), "3.12", OLDEST, "idna")
    if done.returncode:
        pytest.skip(f"no package index answers: {done.stderr.strip().splitlines()[-1]}")


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_package_of_a_processor_s_images_has_a_wheel_for_aarch64(
    python: str, tmp_path: Path
) -> None:
    done = dry_run(tmp_path, python, OLDEST, *files(SERVE, f"{LOCKS}/quantize.txt"))
    assert done.returncode == 0, done.stderr
    assert {"onnxruntime", "matplotlib"} <= set(re.findall(r"^ \+ ([\w-]+)==", done.stderr, re.M))


def test_older_systems_are_told_apart(tmp_path: Path) -> None:
    done = dry_run(tmp_path, "3.12", "aarch64-manylinux_2_28", *files(SERVE))
    assert done.returncode != 0
    assert "openvino" in done.stderr


@pytest.mark.parametrize(
    ("platform", "locks"),
    [
        ("x86_64-manylinux_2_39", [SERVE, f"{LOCKS}/tensorrt.txt"]),
        ("x86_64-manylinux_2_39", [f"{LOCKS}/vllm.txt"]),
        ("aarch64-manylinux_2_39", [SERVE, f"{LOCKS}/cuda.txt"]),
    ],
    ids=["cuda", "cuda-vllm", "jetson"],
)
def test_the_images_on_ubuntu_24_04_find_wheels_for_all_that_they_pin(
    platform: str, locks: list[str], tmp_path: Path
) -> None:
    done = dry_run(tmp_path, "3.12", platform, *files(*locks))
    assert done.returncode == 0, done.stderr
