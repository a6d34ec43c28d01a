"""A work folder grows to its limit: what was used longest ago goes, and nothing that is in use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ds_quantize import keeping
from ds_quantize.errors import QuantizeError
from ds_quantize.progress import Silent
from ds_quantize.stages import Stages

WAITING = """
import sys, time
from pathlib import Path
from ds_quantize.progress import Silent
from ds_quantize.stages import Stages

def make(folder):
    (folder / "half").write_text("half")
    print("making", flush=True)
    time.sleep(100)

stages = Stages(Path(sys.argv[1]), Silent())
stages.run("int8", {"model": "a"}, lambda folder: {})
stages.run("int8", {"model": "slow"}, make)
"""


def make(folder: Path) -> dict[str, Any]:
    (folder / "model.onnx").write_bytes(bytes(1000))
    return {}


def made(root: Path, model: str, keep: int = 10**9) -> Path:
    return Stages(root, Silent(), keep).run("int8", {"model": model}, make).folder


def aged(folder: Path, seconds: int) -> None:
    os.utime(folder, (folder.stat().st_mtime - seconds,) * 2)


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    (tmp_path / "somebody's").mkdir()
    old, older, oldest = (made(tmp_path, name) for name in "abc")
    for folder, seconds in ((old, 10), (older, 20), (oldest, 30)):
        aged(folder, seconds)
    assert made(tmp_path, "c") == oldest  # used again
    new = made(tmp_path, "d", keep=2500)
    assert [folder.exists() for folder in (old, older, oldest, new)] == [False, False, True, True]
    assert (tmp_path / "somebody's").exists()


def test_what_this_run_uses_stays_whatever_the_limit_is(tmp_path: Path) -> None:
    stages = Stages(tmp_path, Silent(), keep=0)
    folders = [stages.run("int8", {"model": name}, make).folder for name in "abc"]
    assert all((folder / "model.onnx").exists() for folder in folders)
    del stages
    last = made(tmp_path, "d", keep=0)
    assert [folder.exists() for folder in (*folders, last)] == [False, False, False, True]


def test_what_another_run_uses_stays_and_what_one_has_left_half_made_goes(tmp_path: Path) -> None:
    used = made(tmp_path, "a")
    command = [sys.executable, "-c", WAITING, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"making\n"
        made(tmp_path, "b", keep=0)
        assert used.exists()
        (half,) = tmp_path.glob("*.partial")
        other.send_signal(signal.SIGKILL)
    made(tmp_path, "c", keep=0)
    assert not used.exists()
    assert not half.exists()


def test_the_limit_is_said_by_the_call_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(keeping.VARIABLE, raising=False)
    assert keeping.limit() == 20_000_000_000
    monkeypatch.setenv(keeping.VARIABLE, "0.5")
    assert keeping.limit() == 500_000_000
    assert keeping.limit(2) == 2_000_000_000
    for wrong in ("much", "-1", "inf"):
        monkeypatch.setenv(keeping.VARIABLE, wrong)
        with pytest.raises(QuantizeError, match=f"DS_QUANTIZE_KEEP is '{wrong}'; give gigabytes"):
            keeping.limit()
