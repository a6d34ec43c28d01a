"""Magika names the types of real files: of this repository, of Python, and made of them."""

from __future__ import annotations

import bz2
import difflib
import gzip
import inspect
import io
import json
import lzma
import pydoc
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.scenarios import Arrays

NAME = "magika"
ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(inspect.getfile(inspect)).parent


def model(folder: Path, **options: object) -> str:
    """The catalogue's entry. Raises ValueError: there are no options."""
    if options:
        raise ValueError(f"there is no option {next(iter(options))!r}; magika has none")
    _config()
    return NAME


def requests(seed: int) -> Iterator[Arrays]:
    """bytes int32 [1, 2048]: the beginning and the end of a file."""
    rows = list(_rows().values())
    order = np.random.default_rng(seed).permutation(len(rows))
    while True:
        for index in order:
            yield {"bytes": rows[index]}


def check(inputs: Arrays, outputs: Arrays) -> str | None:
    """The type with the highest score is the file's."""
    scores = outputs.get("target_label")
    labels = _config()["target_labels_space"]
    if scores is None or scores.shape != (1, len(labels)):
        return f"target_label is {'missing' if scores is None else list(scores.shape)}"
    named, want = labels[int(scores.argmax())], _labels()[inputs["bytes"].tobytes()]
    return None if named == want else f"a file of type {want} is called {named}"


@cache
def _config() -> dict[str, Any]:
    """What lies beside the model in the catalogue's cache, fetched if need be."""
    command = [sys.executable, "-m", "ds_serve.catalogue", "fetch", NAME]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"magika cannot be fetched: {done.stderr.strip()[-500:]}")
    path = Path(done.stdout.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(path.with_name("config.min.json").read_text())
    return found


@cache
def _rows() -> dict[str, npt.NDArray[np.int32]]:
    return {label: _features(content) for label, content in _files().items()}


@cache
def _labels() -> dict[bytes, str]:
    return {row.tobytes(): label for label, row in _rows().items()}


def _features(content: bytes) -> npt.NDArray[np.int32]:
    """The first and the last bytes that are not blank, padded."""
    config = _config()
    beginning, end, block = config["beg_size"], config["end_size"], config["block_size"]
    first = content[:block].lstrip()[:beginning]
    last = content[-block:].rstrip()[-end:]
    row = np.full(beginning + end, config["padding_token"], np.int32)
    row[: len(first)] = list(first)
    row[len(row) - len(last) :] = list(last)
    return row[None]


def _files() -> dict[str, bytes]:
    """Files by the type that Magika should find."""
    python = Path(inspect.getfile(difflib)).read_bytes()
    html = pydoc.HTMLDoc()
    return {
        "python": python,
        "css": (PYTHON / "pydoc_data" / "_pydoc.css").read_bytes(),
        "c": (Path(np.get_include()) / "numpy" / "ndarraytypes.h").read_bytes(),
        "shell": (ROOT / "scripts" / "setup").read_bytes(),
        "markdown": (ROOT / "README.md").read_bytes(),
        "toml": (ROOT / "pyproject.toml").read_bytes(),
        "makefile": (ROOT / "Makefile").read_bytes(),
        "proto": (ROOT / "proto" / "grpc_service.proto").read_bytes(),
        "txt": (ROOT / "LICENSE").read_bytes(),
        "elf": Path(sys.executable).resolve().read_bytes(),
        "html": html.page("json", html.docmodule(json)).encode(),
        "gzip": gzip.compress(python),
        "bzip": bz2.compress(python),
        "xz": lzma.compress(python),
        "tar": _tar(),
        "zip": _zip(),
    }


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for path in sorted(PYTHON.glob("json/*.py")):
            archive.add(path, path.name)
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(PYTHON.glob("json/*.py")):
            archive.write(path, path.name)
    return file.getvalue()
