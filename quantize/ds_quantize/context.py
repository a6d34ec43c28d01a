"""What a stage is given besides the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from ds_quantize.errors import DataError
from ds_quantize.forms import Measured, Model

if TYPE_CHECKING:
    from ds_quantize.data import Data

Item = TypeVar("Item")


class Progress(Protocol):
    """Shows how far the stage is."""

    def track(
        self, items: Iterable[Item], description: str, total: int | None = None
    ) -> Iterator[Item]:
        """`items`, and a bar that moves as they are taken; `total` where `items` has no length."""

    def say(self, message: str) -> None:
        """One line for the user."""


@dataclass(frozen=True)
class Context:
    """`folder` is the stage's own, empty at the start, and kept when the stage succeeds.

    `original` is the model as it was before the first step: the teacher of a distillation, the
    reference of a sensitivity. `measured` takes numbers for the manifest. `seed` makes what is
    random repeatable. `threads` is how many the libraries may use. `resume` is a folder, which may
    not be there yet, that outlives an interruption: what it holds is of this very stage.
    """

    folder: Path
    progress: Progress
    original: Model
    calibration: Data | None = None
    evaluation: Data | None = None
    measured: Measured = field(default_factory=dict)
    seed: int = 0
    threads: int = 0
    resume: Path | None = None

    def needed_calibration(self, method: str) -> Data:
        """The calibration data; DataError where the user gave none."""
        if self.calibration is None:
            raise DataError(f"{method} needs calibration data; give them with --calibration")
        return self.calibration
