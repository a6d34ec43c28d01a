"""Which versions are to be served where manifests keep some from it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from manifests import WHY, judge, tamper
from onnx_models import mlp

from ds_engines.errors import LoadError
from ds_engines.manifest import MANIFEST
from ds_serve.repository.admission import Remembered, admit
from ds_serve.repository.library import Library

BAD = 100
"""Versions from this one on do not pass."""


def put(folder: Path, *versions: int) -> Path:
    for version in versions:
        mlp(folder / "m" / str(version) / "model.onnx", version)
        judge(folder / "m" / str(version), passed=version < BAD)
    return folder / "m"


def read(folder: Path, policy: str = "") -> tuple[list[str], list[str]]:
    """The versions to serve, and those refused."""
    if policy:
        (folder / "m/config.pbtxt").write_text(f"version_policy {{ {policy} }}")
    sources = Library([], [str(folder)], Remembered()).read("m")
    served = [source.version for source in sources if not source.refusal]
    refused = [source.version for source in sources if source.refusal]
    assert all(WHY in source.refusal for source in sources if source.refusal)
    return served, refused


@pytest.mark.parametrize(
    ("versions", "policy", "served", "refused"),
    [
        ([1, 2], "", ["2"], []),
        ([1, 2, 100], "", ["2"], ["100"]),
        ([1, 100, 101], "", ["1"], ["101", "100"]),
        ([100, 101], "", [], ["101", "100"]),
        ([1, 2, 3, 100], "latest { num_versions: 2 }", ["2", "3"], ["100"]),
        ([1, 2, 100], "all {}", ["1", "2"], ["100"]),
        ([1, 2, 100], "specific { versions: [1, 100] }", ["1"], ["100"]),
        ([1, 2, 100], "specific { versions: [100] }", [], ["100"]),
        # Its worker finds out.
        ([100], "", ["100"], []),
    ],
)
def test_an_older_version_takes_the_place_of_one_that_did_not_pass(
    tmp_path: Path, versions: list[int], policy: str, served: list[str], refused: list[str]
) -> None:
    put(tmp_path, *versions)
    assert read(tmp_path, policy) == (served, refused)


def test_without_manifests_all_is_as_ever(tmp_path: Path) -> None:
    for version in put(tmp_path, 1, 100).iterdir():
        (version / MANIFEST).unlink()
    assert read(tmp_path) == (["100"], [])


def test_what_has_changed_is_read_again(tmp_path: Path) -> None:
    folder = put(tmp_path, 1, 2)
    refusal = Remembered()
    assert refusal(folder / "2") == refusal(folder / "2") == ""
    tamper(folder / "2")
    assert "model.onnx has changed since it was judged" in refusal(folder / "2")
    judge(folder / "2")
    assert refusal(folder / "2") == ""
    (folder / "2" / "more").write_text("of something")
    assert "more is not in manifest.json" in refusal(folder / "2")
    assert refusal(folder / "1") == ""


def test_what_is_served_anyway_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = put(tmp_path, 1, 100) / "100" / "model.onnx"
    with pytest.raises(LoadError, match=r"did not pass.*\(--allow-unverified would serve it"):
        admit("m", file, anyway=False)
    with caplog.at_level(logging.WARNING):
        admit("m", file, anyway=True)
        admit("m", tmp_path / "m/1/model.onnx", anyway=True)
    (warning,) = caplog.messages
    assert warning.startswith("model m is served because of --allow-unverified, though")
    assert WHY in warning


def test_text_models_too(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/model.gguf").write_bytes(b"GGUF")
    judge(tmp_path / "1", passed=False)
    flags = ["--uds", tmp_path / "s", "--model", "m", "--artifact", tmp_path / "1/model.gguf"]
    assert WHY in reason(tmp_path / "failure", *flags)
    # Then nothing but the file itself is wrong.
    assert WHY not in reason(tmp_path / "failure", *flags, "--allow-unverified")


def reason(file: Path, *flags: str | Path) -> str:
    """Why a text worker does not begin, as it tells the supervisor."""
    environment = os.environ | {"DS_FAILURE_FILE": str(file)}
    done = subprocess.run(
        [sys.executable, "-m", "ds_serve.text", *flags],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    return file.read_text()
