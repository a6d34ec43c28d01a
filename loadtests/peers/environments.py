"""A virtual environment for each peer, below the user's cache folder, with pinned versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from loadtests.perf_analyzer import BenchmarkError

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ds-serve/peers"
VERSIONS = Path(__file__).resolve().parent / "versions.toml"
STAMP = "requirements.json"


def requirements() -> dict[str, list[str]]:
    """The peers that need an environment, each with its pins."""
    return {name: list(lines["requirements"]) for name, lines in _table().items()}


def serving(what: str) -> list[str]:
    """Those of them that serve `what`: tensors or text."""
    return [name for name, lines in _table().items() if lines.get("serves", "tensors") == what]


def _table() -> dict[str, Any]:
    return tomllib.loads(VERSIONS.read_text())


def installed(key: str) -> bool:
    stamp = CACHE / key / STAMP
    return stamp.exists() and json.loads(stamp.read_text()) == requirements()[key]


def python(key: str) -> Path:
    """The interpreter to run a peer with; ours where it needs no environment of its own.

    Raises BenchmarkError saying what to run where it is not installed, or with other versions.
    """
    if key not in requirements():
        return Path(sys.executable)
    if not installed(key):
        raise BenchmarkError(f"it is not installed: run python -m loadtests.peers install {key}")
    return CACHE / key / "bin" / "python"


def install(key: str) -> None:
    """Make the environment anew, unless it is there. Raises BenchmarkError."""
    if installed(key):
        return
    folder = CACHE / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    wanted, unwanted = requirements()[key], _table()[key].get("without", [])
    commands = [[sys.executable, "-m", "venv", "--clear", str(folder)], [*pip, "install", *wanted]]
    if unwanted:
        commands.append([*pip, "uninstall", "--yes", *unwanted])
    for command in commands:
        if subprocess.run(command, check=False).returncode:
            raise BenchmarkError(f"{key} could not be installed: {' '.join(command)} failed")
    (folder / STAMP).write_text(json.dumps(wanted))
