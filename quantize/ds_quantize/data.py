"""Calibration and evaluation data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ds_engines.base import Array, Tensors


@dataclass(frozen=True)
class Batch:
    """Some rows: `inputs` by name, each with its rows along the model's batch axis (the first,
    where the model does not say otherwise), and a label for each row where there are labels.
    """

    inputs: Tensors
    labels: Array | None = None


class Data(Protocol):
    """Rows that are read again and again, always in the same order.

    `source` is as the user gave it, `digest` a SHA-256 over the contents, `rows` how many rows
    there are.
    """

    source: str
    digest: str
    rows: int
    labelled: bool

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows, `size` at a time, fewer in the last batch."""
