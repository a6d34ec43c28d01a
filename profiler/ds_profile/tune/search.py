"""The trials: Optuna proposes, a server is measured, and a file remembers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from ds_profile.errors import ProfileError
from ds_profile.tune.measure import Goal, Score, Watch
from ds_profile.tune.space import Candidate, Space

STUDY = "ds-profile"
STARTUP_TRIALS = 8
HOPELESS = 0.5
"""Share of the best trial's rate at the same step below which a trial is given up."""

FAR_BEYOND = 3.0
"""Times the latency limit above which a first step needs no second."""

DONE = (TrialState.COMPLETE, TrialState.PRUNED)

Measure = Callable[[Candidate, Watch], Score]
Tell = Callable[[int, Candidate, Score | None], None]
"""Told the number of a trial, what was tried, and its score; None where it was given up."""


class Hopeless(Exception):
    """The measurement under way cannot become the best."""


class Search:
    """Trials of a space, kept in `file` (None: in memory), and gone on with from there.

    Raises ProfileError where the file is no study, or one of something else.
    """

    def __init__(self, goal: Goal, space: Space, file: Path | None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._goal = goal
        self._space = space
        self._study = _open(file)
        self._identify(file)
        self._take_up()

    def run(self, trials: int, measure: Measure, tell: Tell) -> None:
        """Try until `trials` different candidates were, those of earlier runs counted."""
        asked = 0
        while len(self._tried()) < min(trials, self._space.size) and asked < 10 * trials:
            asked += 1
            trial = self._study.ask(_distributions(self._space))
            candidate = self._space.candidate(trial.params)
            known = self._tried().get(candidate)
            if known is not None:
                self._repeat(trial, known)
                continue
            self._try(trial, candidate, measure, tell)

    def best(self, count: int) -> list[Candidate]:
        """The candidates with the highest values, the best first."""
        tried = [
            (trial.value or 0.0, candidate)
            for candidate, trial in self._tried().items()
            if trial.state == TrialState.COMPLETE
        ]
        tried.sort(key=lambda item: -item[0])
        return [candidate for _, candidate in tried[:count]]

    @property
    def tried(self) -> int:
        """How many different candidates have been."""
        return len(self._tried())

    def _try(self, trial: Trial, candidate: Candidate, measure: Measure, tell: Tell) -> None:
        best = self._best_trial()

        def watch(step: int, rate: float, latency_ms: float) -> None:
            trial.report(rate, step)
            if self._hopeless(best, step, rate, latency_ms):
                raise Hopeless

        number = self.tried + 1
        try:
            score = measure(candidate, watch)
        except Hopeless:
            self._study.tell(trial, state=TrialState.PRUNED)
            tell(number, candidate, None)
            return
        trial.set_user_attr("latency_ms", score.latency_ms)
        trial.set_user_attr("concurrency", score.concurrency)
        self._study.tell(trial, score.value(self._goal))
        tell(number, candidate, score)

    def _hopeless(
        self, best: FrozenTrial | None, step: int, rate: float, latency_ms: float
    ) -> bool:
        if best is None:
            return False
        if latency_ms > FAR_BEYOND * self._goal.latency_ms:
            return True
        return rate < HOPELESS * best.intermediate_values.get(step, 0.0)

    def _best_trial(self) -> FrozenTrial | None:
        """The best that kept the limit."""
        done = [t for t in self._tried().values() if t.value is not None and t.value > 0]
        return max(done, key=lambda trial: trial.value or 0.0, default=None)

    def _tried(self) -> dict[Candidate, FrozenTrial]:
        """Each candidate's first trial that came to an end."""
        found: dict[Candidate, FrozenTrial] = {}
        for trial in self._study.get_trials(deepcopy=False, states=DONE):
            found.setdefault(self._space.candidate(trial.params), trial)
        return found

    def _repeat(self, trial: Trial, known: FrozenTrial) -> None:
        """A proposal that was measured already tells the sampler the same again; then something
        new has its turn.
        """
        if known.state == TrialState.COMPLETE:
            self._study.tell(trial, known.value)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)
        self._study.enqueue_trial(self._new_places(), skip_if_exists=True)

    def _new_places(self) -> dict[str, int]:
        tried = self._tried()
        while True:  # the space is larger than what was tried
            places = {
                name: random.randrange(len(values))  # noqa: S311
                for name, values in self._space.values.items()
            }
            if self._space.candidate(places) not in tried:
                return places

    def _identify(self, file: Path | None) -> None:
        """A study holds for one model, goal and space only."""
        mine = _identity(self._goal, self._space)
        theirs = self._study.user_attrs
        for name, value in mine.items():
            if name not in theirs:
                self._study.set_user_attr(name, value)
            elif theirs[name] != value:
                raise ProfileError(
                    f"--study {file} is of other trials: its {name} is {theirs[name]!r}, not "
                    f"{value!r}; give another file"
                )

    def _take_up(self) -> None:
        """What an earlier run was measuring when it was killed is measured anew, and first."""
        for trial in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            self._study.tell(trial.number, state=TrialState.FAIL)
            self._study.enqueue_trial(dict(trial.params), skip_if_exists=False)
        if not self._study.get_trials(deepcopy=False):
            self._study.enqueue_trial(self._space.places(self._space.default))


def _open(file: Path | None) -> optuna.Study:
    storage = None if file is None else f"sqlite:///{file.absolute()}"
    try:
        study = optuna.create_study(
            storage=storage, study_name=STUDY, load_if_exists=True, direction="maximize"
        )
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ProfileError(f"--study {file} cannot be used: {reason}") from None
    # Another seed in each run: with the same one, a study that goes on would propose again what
    # it has tried.
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=STARTUP_TRIALS, multivariate=False, seed=len(study.trials)
    )
    return study


def _distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    return {
        name: optuna.distributions.IntDistribution(0, len(values) - 1)
        for name, values in space.values.items()
    }


def _identity(goal: Goal, space: Space) -> dict[str, Any]:
    return {
        "model": str(goal.source.artifact),
        "latency_ms": goal.latency_ms,
        "percentile": goal.percentile,
        "protocol": goal.protocol,
        "concurrency": goal.concurrency or "auto",
        "rows": goal.wish.rows,
        "values": {name: list(values) for name, values in sorted(space.values.items())},
    }
