"""`ds-profile tune`, from the first measurement to the file."""

from __future__ import annotations

import datetime
import shlex
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop
from rich.console import Console

from ds_profile.errors import ProfileError
from ds_profile.server import Model, busy_with_others, describe, running
from ds_profile.tune.measure import Goal, Score, Watch, measure
from ds_profile.tune.search import Search
from ds_profile.tune.space import (
    MOST_GATEWAYS,
    Candidate,
    Space,
    base_of,
    default_of,
    laid_out,
    space_of,
    written,
)
from ds_proto.model_config_pb2 import ModelConfig
from ds_serve.supervisor import cpus

__all__ = ["Goal", "tune"]

FINALISTS = 3
CLEAR = 1.1
"""Times the default's rate that a single measurement must show to count."""


@dataclass(frozen=True)
class Final:
    """A candidate's repeated measurements. None: the default, as the model is served now."""

    candidate: Candidate
    scores: tuple[Score, ...]

    @property
    def rate(self) -> float:
        return statistics.median(score.rate for score in self.scores)

    @property
    def latency_ms(self) -> float:
        return statistics.median(score.latency_ms for score in self.scores)

    def keeps(self, goal: Goal) -> bool:
        """Whether most measurements kept the limit."""
        kept = sum(score.keeps(goal) for score in self.scores)
        return 2 * kept > len(self.scores)


def tune(
    goal: Goal, trials: int, repeats: int, study: Path | None, output: Path, console: Console
) -> int:
    """Search, compare the best with the default, write config.pbtxt; the exit status.

    Raises ProfileError, also where no configuration keeps the limit.
    """
    if busy := busy_with_others():
        console.print(busy)
    base = base_of(goal.source)
    space = _space(goal, base)
    search = Search(goal, space, study)
    if search.tried:
        console.print(f"going on after {search.tried} trials in {study}")

    def measured(candidate: Candidate, watch: Watch) -> Score:
        return uvloop.run(measure(goal, base, candidate, space.batched, watch))

    def tell(number: int, candidate: Candidate, score: Score | None) -> None:
        console.print(f"trial {number}/{trials}: {candidate}: {_said(goal, score)}")

    search.run(trials, measured, tell)
    finals = _finals(goal, base, space, search, repeats, console)
    best = winner(goal, finals)
    _write(goal, base, space, finals, best, output)
    _prove(goal, best.candidate, output)
    _tell(goal, finals, best, output, console)
    return 0


def _space(goal: Goal, base: ModelConfig | None) -> Space:
    """By what the running server says of the model."""

    async def ask() -> Model:
        with running([laid_out(goal.source, None, Path())]) as server:
            return await describe(server, goal.source.name)

    processors = cpus.available()
    return space_of(
        uvloop.run(ask()),
        base,
        latency_ms=goal.latency_ms,
        rows_in_flight=goal.concurrency * goal.wish.rows,
        most_instances=goal.most_instances or max(2, processors),
        most_gateways=goal.most_gateways or min(MOST_GATEWAYS, max(2, processors)),
    )


def _said(goal: Goal, score: Score | None) -> str:
    if score is None:
        return "given up early"
    said = f"{score.rate:,.0f}/s, p{goal.percentile:g} {score.latency_ms:.1f} ms"
    if not goal.concurrency:
        said += f" with {score.concurrency} in flight"
    if score.errors:
        return f"{said}, {score.errors} failed"
    return said if score.keeps(goal) else f"{said}: above the limit"


def _finals(
    goal: Goal,
    base: ModelConfig | None,
    space: Space,
    search: Search,
    repeats: int,
    console: Console,
) -> list[Final]:
    """The default and the best trials, measured in turn so that what disturbs one disturbs all."""
    best = [each for each in search.best(FINALISTS + 1) if each != space.default][:FINALISTS]
    candidates = [space.default, *best]
    scores: dict[Candidate, list[Score]] = {candidate: [] for candidate in candidates}
    for turn in range(repeats):
        for candidate in candidates if turn % 2 == 0 else reversed(candidates):
            how = None if candidate == space.default else candidate
            score = uvloop.run(measure(goal, base, how, space.batched))
            scores[candidate].append(score)
            name = "the default" if how is None else str(candidate)
            console.print(f"final {turn + 1}/{repeats}: {name}: {_said(goal, score)}")
    return [Final(candidate, tuple(scores[candidate])) for candidate in candidates]


def winner(goal: Goal, finals: Sequence[Final]) -> Final:
    """The default, unless another is better beyond what measurements differ among themselves."""
    default = finals[0]
    keeping = [final for final in finals if final.keeps(goal)]
    if not keeping:
        nearest = min(finals, key=lambda final: final.latency_ms)
        raise ProfileError(
            f"no configuration tried keeps p{goal.percentile:g} within {goal.latency_ms:g} ms; "
            f"the nearest has {nearest.latency_ms:.1f} ms ({nearest.candidate})"
        )
    keeping.sort(key=lambda final: -final.rate)
    better = (final for final in keeping if final is not default and _beats(goal, final, default))
    return next(better, default)


def _beats(goal: Goal, one: Final, default: Final) -> bool:
    """Whether its worst measurement is better than the default's best; a rate within the limit
    is better than any beyond it.
    """
    worst = min(score.value(goal) for score in one.scores)
    best = max(score.value(goal) for score in default.scores)
    return worst > max(best, 0.0) and (len(one.scores) > 1 or worst >= CLEAR * best)


def _write(
    goal: Goal,
    base: ModelConfig | None,
    space: Space,
    finals: Sequence[Final],
    best: Final,
    output: Path,
) -> None:
    default = finals[0]
    day = datetime.datetime.now(tz=datetime.UTC).date()
    lines = [
        f"ds-profile tune, {day}, {cpus.available()} processors: {goal.source.name} over "
        f"{goal.protocol}, {goal.wish.rows} rows in a request",
        f"limit: p{goal.percentile:g} within {goal.latency_ms:g} ms",
        f"this: {best.rate:,.0f} requests/s, {best.latency_ms:.1f} ms; the default: "
        f"{default.rate:,.0f} requests/s, {default.latency_ms:.1f} ms",
        f"start it with: {_command(goal, best.candidate)}",
    ]
    comment = "".join(f"# {line}\n" for line in lines)
    try:
        output.write_text(comment + written(base, best.candidate, space.batched), encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{output} cannot be written: {error.strerror}") from None


def _command(goal: Goal, candidate: Candidate) -> str:
    return shlex.join(["ds-serve", "--model", str(goal.source.artifact), *candidate.flags()])


def _prove(goal: Goal, candidate: Candidate, output: Path) -> None:
    """Load the model with the file. Raises ProfileError where the server then says otherwise."""

    async def ask(model: str) -> Model:
        with running([model], candidate.flags()) as server:
            return await describe(server, goal.source.name)

    with tempfile.TemporaryDirectory(prefix="ds-profile-") as folder:
        text = output.read_text(encoding="utf-8")
        model = uvloop.run(ask(laid_out(goal.source, text, Path(folder, "model"))))
    loaded = replace(default_of(model, None), gateways=candidate.gateways)
    if not model.config.max_batch_size:  # as of a model that is batched along other axes
        loaded = replace(loaded, max_batch_size=candidate.max_batch_size)
    if loaded != candidate:
        raise ProfileError(f"ds-serve loads {output} as {loaded}, not as {candidate}")


def _kept(goal: Goal, final: Final) -> str:
    kept = sum(score.keeps(goal) for score in final.scores)
    many = len(final.scores)
    return "" if kept == many else f"; it kept the limit in {kept} of {many} measurements"


def _tell(goal: Goal, finals: Sequence[Final], best: Final, output: Path, console: Console) -> None:
    default = finals[0]
    limit = f"p{goal.percentile:g} within {goal.latency_ms:g} ms"
    if best is default:
        console.print(
            f"Nothing beats the default beyond noise under {limit}: {default.rate:,.0f} "
            f"requests/s, {default.latency_ms:.1f} ms ({default.candidate}){_kept(goal, default)}."
        )
    else:
        console.print(
            f"Best under {limit}: {best.candidate}: {best.rate:,.0f} requests/s, "
            f"{best.latency_ms:.1f} ms; {best.rate / default.rate:.2f} times the default's "
            f"{default.rate:,.0f} ({default.latency_ms:.1f} ms{_kept(goal, default)})."
        )
    console.print(f"{output} is written, and ds-serve loads it. Put it beside the model, then:")
    console.print(f"  {_command(goal, best.candidate)}")
