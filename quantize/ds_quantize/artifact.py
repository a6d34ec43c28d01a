"""A version of a model in a repository: put there whole, or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from ds_quantize import disk
from ds_quantize.errors import QuantizeError

CONFIG = "config.pbtxt"

Fill = Callable[[Path], None]
"""Writes all files of a version into the folder given, its manifest last."""


def promote(output: Path, fill: Fill, config: str) -> Path:
    """Add the next version to the model's folder `output`; its path.

    The version is put together in a hidden folder beside it, brought to the disk, and renamed: a
    server that watches the repository sees all of it or nothing. `config` becomes the model's
    config.pbtxt where it has none. Raises QuantizeError where the folder cannot be written.
    """
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with disk.locked(output.parent, lambda: None):
            if output.exists():
                return _next(output, fill, config)
            return _first(output, fill, config)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise QuantizeError(f"the disk of {output} is full; nothing was promoted") from None
        raise QuantizeError(
            f"{error.filename or output} cannot be written: {error.strerror}"
        ) from None


def check(output: Path) -> None:
    """Raise QuantizeError early where `output` cannot be a model's folder."""
    if output.exists() and not output.is_dir():
        raise QuantizeError(f"{output} is a file; -o names the model's folder in a repository")
    if not output.name or output.name.startswith("."):
        raise QuantizeError(f"{str(output)!r} cannot be a model's folder; give models/NAME")
    if output.name.isdecimal():
        raise QuantizeError(
            f"{output} looks like a version, whose number is found for you; give {output.parent}"
        )


def _first(output: Path, fill: Fill, config: str) -> Path:
    """The whole folder of the model appears at once."""
    partial = disk.emptied(output.with_name(f".{output.name}.partial"))
    try:
        (partial / "1").mkdir()
        fill(partial / "1")
        disk.write(partial / CONFIG, config)
        disk.sync_tree(partial)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    disk.sync(output.parent)
    return output / "1"


def _next(output: Path, fill: Fill, config: str) -> Path:
    for left in output.glob(".*.partial"):  # by a run that was killed, as we hold the lock
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    number = max((int(p.name) for p in output.iterdir() if p.name.isdecimal()), default=0) + 1
    partial = disk.emptied(output / f".{number}.partial")
    version = output / str(number)
    try:
        fill(partial)
        disk.sync_tree(partial)
        if not (output / CONFIG).exists():
            disk.write(output / CONFIG, config)
        partial.rename(version)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    disk.sync(output)
    return version
