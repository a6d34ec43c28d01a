"""What rate one configuration reaches under the latency limit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ds_profile.inputs import Wish
from ds_profile.load import Load, Measured, Protocol, to_model
from ds_profile.run import require_answers, working_inputs
from ds_profile.server import describe, running
from ds_profile.tune.space import Candidate, laid_out, written
from ds_proto.model_config_pb2 import ModelConfig
from ds_serve.models import ModelSource

WARM_UP = 0.5
SLICES = 4
LEVELS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STILL_GROWS = 1.05

Watch = Callable[[int, float, float], None]
"""Told a step, its rate and its latency in ms; raises what ends a hopeless measurement."""


@dataclass(frozen=True)
class Goal:
    """`concurrency` 0: as many requests in flight as the limit allows."""

    source: ModelSource
    latency_ms: float
    percentile: float = 99.0
    protocol: Protocol = "http"
    concurrency: int = 0
    seconds: float = 4.0
    wish: Wish = field(default_factory=Wish)
    most_gateways: int = 0
    most_instances: int = 0


@dataclass(frozen=True)
class Score:
    """`rate` in requests a second, at `concurrency` requests in flight."""

    rate: float
    latency_ms: float
    concurrency: int
    errors: int = 0

    def keeps(self, goal: Goal) -> bool:
        """Whether the limit is kept and nothing failed."""
        return self.latency_ms <= goal.latency_ms and not self.errors

    def value(self, goal: Goal) -> float:
        """What the search maximises: the rate, and below all rates how near the limit is."""
        return self.rate if self.keeps(goal) else -self.latency_ms / goal.latency_ms


def nobody(step: int, rate: float, latency_ms: float) -> None:
    """Watches nothing."""


async def measure(
    goal: Goal,
    base: ModelConfig | None,
    candidate: Candidate | None,
    batched: bool,
    watch: Watch = nobody,
) -> Score:
    """Start the server so configured (None: as it is) and load it. Raises ProfileError."""
    with tempfile.TemporaryDirectory(prefix="ds-profile-") as folder:
        config = None if candidate is None else written(base, candidate, batched)
        model = laid_out(goal.source, config, Path(folder, "model"))
        with running([model], [] if candidate is None else candidate.flags()) as server:
            described = await describe(server, goal.source.name)
            arrays = await working_inputs(server, described, goal.wish, goal.protocol)
            clients = goal.concurrency or max(LEVELS)
            async with to_model(
                server, described.name, described.inputs, arrays, goal.protocol, clients
            ) as load:
                if goal.concurrency:
                    return await _fixed(goal, load, watch)
                return await _rising(goal, load, watch)


async def _fixed(goal: Goal, load: Load, watch: Watch) -> Score:
    """In slices, so that the hopeless end early."""
    await load.run(goal.concurrency, WARM_UP)
    whole = Measured()
    for step in range(SLICES):
        part = await load.run(goal.concurrency, goal.seconds / SLICES)
        whole.seconds += part.seconds
        whole.waits |= part.waits
        whole.errors += part.errors
        score = _score(goal, whole, goal.concurrency)
        watch(step, score.rate, score.latency_ms)
    require_answers(whole)
    return score


async def _rising(goal: Goal, load: Load, watch: Watch) -> Score:
    """More and more requests in flight, until the limit is passed or the rate grows no more."""
    await load.run(1, WARM_UP)
    best: Score | None = None
    for level in LEVELS:
        score = await _level(goal, load, level, watch)
        if not score.keeps(goal):
            if best is None:
                return score
            between = (best.concurrency + level) // 2
            if best.concurrency < between < level:
                best = _better(goal, best, await _level(goal, load, between, watch))
            return best
        if best is not None and score.rate < STILL_GROWS * best.rate and level > LEVELS[2]:
            return _better(goal, best, score)
        best = score if best is None else _better(goal, best, score)
    assert best is not None, "there are levels"
    return best


async def _level(goal: Goal, load: Load, level: int, watch: Watch) -> Score:
    measured = await load.run(level, goal.seconds / 2)
    require_answers(measured)
    score = _score(goal, measured, level)
    watch(level, score.rate, score.latency_ms)
    return score


def _better(goal: Goal, one: Score, other: Score) -> Score:
    return max(one, other, key=lambda score: score.value(goal))


def _score(goal: Goal, measured: Measured, concurrency: int) -> Score:
    latency = measured.latency_ms(goal.percentile)
    return Score(measured.rate, latency, concurrency, len(measured.errors))
