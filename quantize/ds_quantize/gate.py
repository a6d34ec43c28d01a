"""Whether a candidate is good enough: the recipe's limits against what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from ds_quantize.evaluate.results import Evaluation
    from ds_quantize.limits import Gate


class Verdict(msgspec.Struct, frozen=True):
    """`reasons` say why it did not pass; `values` are what the limits were compared with, by the
    limit's name without `max_` and `min_`. A value that was not measured is missing.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    values: dict[str, float] = {}


ROUNDING = 1e-9
"""0.95 less 0.94 is a little above 0.01."""


@dataclass(frozen=True)
class Check:
    """One limit, by its field of Gate. `show` writes the value, and the limit, for a reader."""

    name: str
    label: str
    value: Callable[[Evaluation], float]
    show: str = "{:.4f}"

    @property
    def key(self) -> str:
        """The name of the value: without `max_` and `min_`."""
        return self.name[4:]

    def keeps(self, value: float, limit: float) -> bool:
        """Whether the value is within the limit; NaN never is."""
        room = limit - value if self.name.startswith("max_") else value - limit
        return room >= -ROUNDING

    def reason(self, value: float, limit: float) -> str:
        """Why it is not."""
        if math.isnan(value):
            return f"{self.label} was not measured, and {self.name} asks for it"
        wanted = "at most" if self.name.startswith("max_") else "at least"
        shown = self.show.format
        return f"{self.label} is {shown(value)}; {self.name} wants {wanted} {shown(limit)}"


def _accuracy(evaluation: Evaluation) -> float:
    """Of an error rate, what is right."""
    quality = evaluation.quality
    value = quality.candidate.value
    return value if quality.better == "higher" else 1 - value


def _estimate(name: str) -> Callable[[Evaluation], float]:
    def value(evaluation: Evaluation) -> float:
        found = getattr(evaluation, name)
        return math.nan if found is None else float(found.value)

    return value


def _perplexity_increase(evaluation: Evaluation) -> float:
    quality = evaluation.metric("perplexity")
    if quality is None or quality.baseline is None:
        return math.nan
    return quality.candidate.value / quality.baseline.value - 1


CHECKS = (
    Check("max_accuracy_drop", "the drop of the metric", lambda e: e.quality.drop),
    Check("min_accuracy", "the metric", _accuracy),
    Check("min_agreement", "the agreement with the original", _estimate("agreement")),
    Check("min_cosine", "the cosine to the original", _estimate("cosine")),
    Check("max_perplexity_increase", "the increase of the perplexity", _perplexity_increase),
    Check("min_speedup", "the speedup", lambda e: e.speedup, "{:.2f}"),
    Check("max_latency_ms", "the latency in ms", lambda e: e.latency_ms, "{:.3f}"),
    Check("max_size", "the size as a share of the original", lambda e: e.size, "{:.3f}"),
)


def judge(limits: Gate, evaluation: Evaluation) -> Verdict:
    """Compare each limit that is set; a fault of the evaluation fails by itself."""
    values = {check.key: check.value(evaluation) for check in CHECKS}
    reasons = list(evaluation.faults)
    for check in CHECKS:
        limit = getattr(limits, check.name)
        if limit is not None and not check.keeps(values[check.key], limit):
            reasons.append(check.reason(values[check.key], limit))
    measured = {key: value for key, value in values.items() if not math.isnan(value)}
    return Verdict(not reasons, tuple(reasons), measured)
