"""What both models answered, row by row, kept small: scores, not outputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec
import numpy as np

from ds_engines.base import Array, Tensors
from ds_quantize.errors import DataError
from ds_quantize.evaluate import intervals
from ds_quantize.evaluate.intervals import Scores
from ds_quantize.evaluate.metrics import Metric, agreement
from ds_quantize.evaluate.outputs import answers, cosines, flat, main_output
from ds_quantize.evaluate.results import Estimate, OutputError, Quality

FEW = 20
"""With fewer rows a single answer for all of them tells nothing."""

USUAL = 0.8
"""Where more of the rows than this have one answer, giving it always is no collapse."""


CHUNK = 1 << 20
"""Elements that are compared at a time: what fits a cache, whatever the outputs' size."""


@dataclass
class Difference:
    """One output of both: whether it changes from row to row, and how far they are apart."""

    first: dict[str, Array] = field(default_factory=dict)
    varies: dict[str, bool] = field(default_factory=lambda: {"original": False, "candidate": False})
    cosines: list[Array] = field(default_factory=list)
    squares: list[Array] = field(default_factory=list)
    largest: float = 0.0
    not_finite: int | None = None

    def add(self, ours: Array, theirs: Array, row: int) -> None:
        """`ours` are the candidate's rows; `row` is the number of the first."""
        self._look(ours, "candidate")
        self._look(theirs, "original")
        if ours.shape != theirs.shape or ours.dtype.kind != "f":
            return
        step = max(1, CHUNK // max(1, ours[:1].size))
        for start in range(0, len(ours), step):
            part = slice(start, start + step)
            self._compare(ours[part], theirs[part], row + start)

    def _compare(self, ours: Array, theirs: Array, row: int) -> None:
        if self.not_finite is None:
            bad = (~np.isfinite(ours) & np.isfinite(theirs)).reshape(len(ours), -1).any(1)
            self.not_finite = row + int(bad.argmax()) if bad.any() else None
        a, b = flat(finite(ours)), flat(finite(theirs))
        self.cosines.append(cosines(a, b))
        if a.size:
            a -= b
            self.squares.append(np.einsum("ij,ij->i", a, a) / a.shape[1])
            self.largest = max(self.largest, float(a.max()), -float(a.min()))

    def _look(self, array: Array, whose: str) -> None:
        if not len(array) or self.varies[whose]:
            return
        first = self.first.setdefault(whose, array[0].copy())
        same = first.shape == array.shape[1:] and bool((array == first).all())
        self.varies[whose] = not same


class Tally:
    """Takes batches of outputs of both, rows along the first axis."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.rows = 0
        self._scores: dict[str, list[Scores]] = {"original": [], "candidate": []}
        self._agreement: list[Scores] = []
        self._differences: dict[str, Difference] = {}
        self._answers = {"original": Counter[int](), "candidate": Counter[int]()}

    def add(self, ours: Tensors, theirs: Tensors, labels: Array | None) -> None:
        """`ours` are the candidate's."""
        for name, array in theirs.items():
            self._differences.setdefault(name, Difference()).add(ours[name], array, self.rows)
        ours = {name: finite(array) for name, array in ours.items()}
        theirs = {name: finite(array) for name, array in theirs.items()}
        reference = labels if self.metric.against == "labels" else theirs
        self._scores["candidate"].append(self.metric.score(ours, reference))
        if self.metric.against == "labels":
            self._scores["original"].append(self.metric.score(theirs, reference))
        self._agree(ours, theirs)
        self.rows += len(next(iter(theirs.values())))

    def _agree(self, ours: Tensors, theirs: Tensors) -> None:
        if self.metric.decode is not None:
            same = np.array(self.metric.decode(ours)) == np.array(self.metric.decode(theirs))
            self._agreement.append(Scores(same.astype(np.float64), np.ones(len(same))))
            return
        first, second = main_output(ours, ""), main_output(theirs, "")
        found = agreement(first, second)
        if found is not None:
            self._agreement.append(found)
            self._count(first, "candidate")
            self._count(second, "original")

    def _count(self, array: Array, whose: str) -> None:
        """How often each class is the answer, where a row has one."""
        found = answers(array)
        if found is not None and found.ndim == 1 and array.dtype.kind == "f":
            self._answers[whose].update(found.tolist())

    def quality(self, seed: int) -> Quality:
        """The metric with its intervals."""
        after = _joined(self._scores["candidate"])
        quality = Quality(
            self.metric.name,
            self.metric.better,
            intervals.estimate(after, seed),
            perfect=self.metric.perfect,
        )
        if not np.isfinite(after.value):
            raise DataError(f"metric {self.metric.name} gives {after.value} for the candidate")
        if self.metric.against != "labels":
            return quality
        before = _joined(self._scores["original"])
        if not np.isfinite(before.value):
            raise DataError(f"metric {self.metric.name} gives {before.value} for the original")
        found: Quality = msgspec.structs.replace(
            quality,
            baseline=intervals.estimate(before, seed),
            change=intervals.change(before, after, seed),
        )
        return found

    def agreement(self, seed: int) -> Estimate | None:
        """None where the outputs are no answers."""
        return intervals.estimate(_joined(self._agreement), seed) if self._agreement else None

    def cosine(self, seed: int) -> Estimate | None:
        """Of the output that is furthest off; None where no output has floating-point numbers."""
        found = [np.concatenate(d.cosines) for d in self._differences.values() if d.cosines]
        if not found:
            return None
        worst = min(found, key=lambda cosine: float(cosine.mean()))
        return intervals.resampled(Scores(worst, np.ones(len(worst))), seed)

    def outputs(self) -> tuple[OutputError, ...]:
        """Each output with floating-point numbers."""
        return tuple(
            OutputError(
                name,
                float(np.concatenate(d.cosines).mean()),
                float(np.concatenate(d.squares).mean()),
                d.largest,
            )
            for name, d in self._differences.items()
            if d.squares
        )

    def faults(self) -> tuple[str, ...]:
        """What no limit needs to be set for."""
        found = [text for name, d in self._differences.items() for text in self._wrong(name, d)]
        return (*found, *([] if found else self._one_answer()))

    def _wrong(self, name: str, difference: Difference) -> list[str]:
        if difference.not_finite is not None:
            return [
                f"output {name!r} is NaN or infinite at row {difference.not_finite}, where the "
                "original's is finite"
            ]
        varies = difference.varies
        if self.rows > 1 and varies["original"] and not varies["candidate"]:
            return [f"output {name!r} has collapsed: it is the same for all {self.rows} rows"]
        return []

    def _one_answer(self) -> list[str]:
        ours, theirs = self._answers["candidate"], self._answers["original"]
        if self.rows < FEW or len(ours) != 1 or len(theirs) < 2:
            return []
        if theirs.most_common(1)[0][1] > USUAL * self.rows:
            return []
        return [
            f"the output has collapsed: class {next(iter(ours))} is the answer to all "
            f"{self.rows} rows, where the original gives {len(theirs)} different ones"
        ]


def finite(array: Array) -> Array:
    """With 0 for what is not; that is told apart, as a fault."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array
    return np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)


def _joined(scores: list[Scores]) -> Scores:
    return Scores(
        np.concatenate([score.total for score in scores]),
        np.concatenate([score.weight for score in scores]),
    )
