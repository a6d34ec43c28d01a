"""The speed of OpenVINO's language models: one more token for each of some texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ds_engines.base import Array
from ds_quantize.evaluate.results import Timing
from ds_quantize.evaluate.speed import timings
from ds_quantize.forms import FolderModel
from ds_quantize.openvino_methods.stateful import Stateful

PAST = 64
"""Tokens of the text that is there already."""

MOST = 256
"""Tokens after which a text is begun anew, so that all see texts of about one length."""


class Stepper:
    """A model that has read `batch` texts, and goes on by a token each."""

    def __init__(self, model: Stateful, batch: int) -> None:
        self._model = model
        self._text = np.full((batch, PAST), 1, np.int64)
        self._begin()

    def run(self, ids: Array, /) -> object:
        """`ids` int64 [batch, 1]."""
        if self._model.past >= PAST + MOST:
            self._begin()
        return self._model.read(ids)

    def _begin(self) -> None:
        self._model.forget()
        self._model.read(self._text)


def timed(
    models: Sequence[FolderModel], batch: int, seconds: float, turns: int, threads: int
) -> list[Timing]:
    """One Timing for each model; they take turns."""
    steppers = [Stepper(Stateful(model.path, threads), batch) for model in models]
    ids = np.ones((batch, 1), np.int64)
    return timings(steppers, [ids] * len(steppers), batch, seconds, turns)
