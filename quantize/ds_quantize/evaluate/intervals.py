"""Values with 95 % intervals.

Proportions: Wilson's score interval (1927). Differences of paired proportions: Agresti and Min's
adjusted interval (2005), which stays sensible where no row differs. All else: percentile bootstrap
over rows, or the normal approximation where there are so many rows that both agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ds_engines.base import Array
from ds_quantize.evaluate.results import Estimate

Z = 1.959964
REPLICATES = 2000
MOST_ROWS = 20_000
"""Above these the bootstrap takes long and tells what the normal approximation does."""

CHUNK = 4_000_000


@dataclass(frozen=True)
class Scores:
    """A metric row by row: its value is `total.sum() / weight.sum()`, a mean where all weights are
    1, and an error rate where they are lengths.
    """

    total: Array
    weight: Array

    @property
    def value(self) -> float:
        return float(self.total.sum() / max(self.weight.sum(), 1e-30))

    @property
    def proportion(self) -> bool:
        """Whether each row counts as one, and either fully or not at all."""
        return bool(np.isin(self.total, (0, 1)).all() and (self.weight == 1).all())


def estimate(scores: Scores, seed: int) -> Estimate:
    """The metric."""
    if scores.proportion:
        return wilson(float(scores.total.sum()), len(scores.total))
    return resampled(scores, seed)


def change(before: Scores, after: Scores, seed: int) -> Estimate:
    """`after` less `before`, of the same rows."""
    difference = Scores(after.total - before.total, before.weight)
    if before.proportion and after.proportion:
        return _paired(difference.total)
    return resampled(difference, seed)


def wilson(successes: float, rows: int) -> Estimate:
    """Of a proportion."""
    share = successes / rows
    denominator = 1 + Z**2 / rows
    middle = (share + Z**2 / (2 * rows)) / denominator
    half = Z * math.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2)) / denominator
    low = min(share, max(0.0, middle - half))
    high = max(share, min(1.0, middle + half))
    return Estimate(share, low, high, rows, "wilson")


def _paired(difference: Array) -> Estimate:
    """Rows that got better are 1, that got worse -1; half a row is added to each of four cells."""
    rows = len(difference)
    better = float((difference > 0).sum()) + 0.5
    worse = float((difference < 0).sum()) + 0.5
    adjusted = rows + 2
    middle = (better - worse) / adjusted
    half = Z * math.sqrt(max(0.0, (better + worse) / adjusted - middle**2) / adjusted)
    value = float(difference.mean())
    low, high = min(value, max(-1.0, middle - half)), max(value, min(1.0, middle + half))
    return Estimate(value, low, high, rows, "agresti-min")


def resampled(scores: Scores, seed: int) -> Estimate:
    """Of a ratio of sums, by resampling rows."""
    rows = len(scores.total)
    if rows < 2:
        return Estimate(scores.value, scores.value, scores.value, rows, "exact")
    if rows > MOST_ROWS:
        return _normal(scores)
    random = np.random.default_rng(seed)
    found = [
        _replicates(scores, random, count) for count in _chunks(REPLICATES, max(1, CHUNK // rows))
    ]
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return Estimate(scores.value, float(low), float(high), rows, "bootstrap")


def _replicates(scores: Scores, random: np.random.Generator, count: int) -> Array:
    rows = len(scores.total)
    picked = random.integers(0, rows, (count, rows))
    replicates: Array = scores.total[picked].sum(1) / np.maximum(
        scores.weight[picked].sum(1), 1e-30
    )
    return replicates


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _normal(scores: Scores) -> Estimate:
    """Linearized variance of a ratio."""
    rows, value = len(scores.total), scores.value
    residual = scores.total - value * scores.weight
    half = Z * float(residual.std(ddof=1)) / math.sqrt(rows) / float(scores.weight.mean())
    return Estimate(value, value - half, value + half, rows, "normal")
