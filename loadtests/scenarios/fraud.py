"""Fraud scoring: payments by card, through a stateful step, to the window that the model reads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from loadtests.models import fraud
from loadtests.models.card_features import STEPS, CardFeatures
from loadtests.models.reference import Arrays, Reference, difference
from loadtests.models.transactions import stream

CARDS, PAYMENTS = 8, 256
"""Of a user: cards, and payments that are scored, over and over."""

POPULATIONS = 16
"""Sets of cards; users share them, and begin at different payments, for each takes some time."""


def model(folder: Path, **options: object) -> str:
    """What follows --model; the file is built in the folder. There are no options."""
    if options:
        raise ValueError(f"{', '.join(options)}: the fraud scenario has no options")
    path = folder / "fraud.onnx"
    if not path.exists():
        fraud.write(path)
    return f"fraud={path}"


def requests(seed: int) -> Iterator[Arrays]:
    """One window, FP32 [1, 24, 16], for each payment of some cards."""
    scored = _scored(seed % POPULATIONS)
    start = seed * 31 % PAYMENTS
    return cycle(scored[start:] + scored[:start])


@cache
def _scored(seed: int) -> list[Arrays]:
    features = CardFeatures()
    windows = (features.add(paid) for paid in stream(CARDS, seed))
    # The first payments of each card only fill its window.
    full = islice(windows, CARDS * STEPS, CARDS * STEPS + PAYMENTS)
    return [{fraud.INPUT: window[np.newaxis]} for window in full]


def check(inputs: Arrays, outputs: Arrays) -> str | None:
    """Compares with ONNX Runtime called directly: takes 0.1 ms, the first time 50."""
    return difference(_reference().run(inputs), outputs)


@cache
def _reference() -> Reference:
    return Reference(fraud.build())
