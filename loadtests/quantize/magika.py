"""Magika, which names the types of files, on the files of this machine."""

from __future__ import annotations

import os
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from loadtests.quantize import Case, recipe
from loadtests.scenarios.magika import _features
from loadtests.start_up.subjects import fetched

PLACES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/share", "/usr/lib")
CALIBRATION = 300
SMALLEST, LARGEST = 64, 4_000_000
OF_A_KIND = 150
"""Files of one suffix, so that they are not all Python's."""


def case(folder: Path, rows: int = 3000) -> Case:
    """`rows` files to compare the answers on, and others to calibrate with."""
    chosen = list(_files(rows + CALIBRATION))
    features = np.concatenate([_features(path.read_bytes()) for path in chosen])
    sources = {"calibration": features[:CALIBRATION], "evaluation": features[CALIBRATION:]}
    for name, given in sources.items():
        np.savez(folder / f"{name}.npz", bytes=given)
    return Case(
        name="Magika 1.0",
        about=f"file types; {len(features) - CALIBRATION:,} real files",
        model=str(fetched("magika")),
        calibration=str(folder / "calibration.npz"),
        evaluation=str(folder / "evaluation.npz"),
        recipe=recipe("magika"),
    )


def _files(count: int) -> Iterator[Path]:
    """Regular files of many kinds, in an order that chance made, always the same."""
    found = sorted({path for place in PLACES for path in _below(Path(place))})
    random.Random(0).shuffle(found)
    of_a_kind: dict[str, int] = {}
    for path in found:
        kind = path.suffix.lower()
        if of_a_kind.setdefault(kind, 0) < OF_A_KIND * (10 if kind in ("", ".py") else 1):
            of_a_kind[kind] += 1
            count -= 1
            yield path
        if not count:
            return


def _below(place: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(place):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink() and _fits(path):
                yield path


def _fits(path: Path) -> bool:
    return SMALLEST <= path.stat().st_size <= LARGEST
