"""Found boxes against those that are there: recall, precision, average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.vision import CLASSES, example

Array = npt.NDArray[Any]
IOU = 0.5
"""From here on a found box is the true one."""

NOTHING = -1
"""The class of a label's row that is no box: each tile's labels are padded to the same length."""


@dataclass(frozen=True)
class Boxes:
    """float32 [n, 4], int64 [n]; `scores` float32 [n] of what was found, in any order."""

    boxes: Array
    classes: Array
    scores: Array


@dataclass(frozen=True)
class Outcome:
    """Of many pictures. For each found box, the best first: its score, its class, and whether it is
    a defect that no better one has found; and how many defects of each class there are.
    """

    scores: Array
    classes: Array
    right: Array
    there: Array

    def at(self, score: float) -> tuple[float, float]:
        """Recall and precision of what has that score or more; precision 1 where nothing has."""
        kept = self.right[self.scores >= score]
        return kept.sum() / max(1, self.there.sum()), kept.mean() if len(kept) else 1.0

    def recall_of(self, kind: int, score: float) -> float:
        kept = self.right[(self.scores >= score) & (self.classes == kind)]
        return float(kept.sum() / max(1, self.there[kind]))

    def average_precision(self, kind: int) -> float:
        """The area below the curve of precision over recall, the curve made falling first: what
        Pascal VOC has used since 2010.
        """
        right = self.right[self.classes == kind]
        recall = np.cumsum(right) / max(1, self.there[kind])
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        falling = np.maximum.accumulate(precision[::-1])[::-1]
        return float((np.diff(recall, prepend=0.0) * falling).sum())

    @property
    def mean_average_precision(self) -> float:
        """Over the classes that there are any defects of."""
        return float(np.mean([self.average_precision(kind) for kind in np.nonzero(self.there)[0]]))


def outcome(pairs: Sequence[tuple[Boxes, Boxes]]) -> Outcome:
    """Pairs of what was found on a picture, and what is there."""
    scores = np.concatenate([found.scores for found, _ in pairs])
    order = np.argsort(-scores, kind="stable")
    there = sum((np.bincount(true.classes, minlength=len(CLASSES)) for _, true in pairs))
    return Outcome(
        scores[order],
        np.concatenate([found.classes for found, _ in pairs])[order],
        np.concatenate([matched(found, true) for found, true in pairs])[order],
        np.asarray(there),
    )


def matched(found: Boxes, true: Boxes) -> Array:
    """Bool [found]: the best found box of each defect, of its class and near enough."""
    right = np.zeros(len(found.boxes), bool)
    left = np.ones(len(true.boxes), bool)
    shares = iou(found.boxes, true.boxes) * (found.classes[:, None] == true.classes)
    for index in np.argsort(-found.scores, kind="stable"):
        open_ = shares[index] * left
        if len(open_) and open_.max() >= IOU:
            left[open_.argmax()] = False
            right[index] = True
    return right


def iou(first: Array, second: Array) -> Array:
    """[n, m]: intersection over union."""
    begin = np.maximum(first[:, None, :2], second[None, :, :2])
    end = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.maximum(end - begin, 0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    shares: Array = common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-6)
    return shares


def recall(outputs: dict[str, Array], labels: Array) -> list[float]:
    """For ds-quantize: the share of each tile's defects that are found, at the score that the
    example has. `labels` [tiles, n, 5]: boxes and classes, NOTHING where there are fewer.
    """
    return [
        float(matched(found, true).sum() / max(1, len(true.boxes)))
        for found, true in _tiles(outputs, labels)
    ]


def _tiles(outputs: dict[str, Array], labels: Array) -> list[tuple[Boxes, Boxes]]:
    size = example.tile_size()
    pairs = []
    for scores, distances, rows in zip(
        outputs["scores"], outputs["distances"], labels, strict=True
    ):
        window = np.array([[0, 0, size, size]])
        boxes, best, classes = example.found(
            scores[None], distances[None], window, (size, size), None
        )
        there = rows[rows[:, 4] != NOTHING]
        true = Boxes(there[:, :4], there[:, 4].astype(np.int64), np.ones(len(there)))
        pairs.append((Boxes(boxes, classes, best), true))
    return pairs
