"""Models that are given whole requests of sequences, and keep each sequence's state themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ds_engines.spec import SequencePolicy
from ds_engines.whole import RequestEngine
from ds_serve.scheduler.queue import Entry
from ds_serve.scheduler.sequences import SequenceQueue, Step
from ds_serve.worker.sequenced import step_of
from ds_serve.worker.whole import Call, Whole
from ds_serve.worker.work import Job


class WholeSequences(Whole):
    """As Whole; a sequence's requests run one after the other, on one instance of the model."""

    def __init__(self, engine: RequestEngine, policy: SequencePolicy) -> None:
        super().__init__(engine)
        self._policy = policy
        self.queue = SequenceQueue(engine.spec.name, engine.spec.batch, policy)

    def push(self, job: Job) -> None:
        self.queue.push(step_of(self._spec, self._policy, job, self._lane(job)))

    def finished(self, entries: Sequence[Entry]) -> None:
        """The model has returned: the sequences go on, whether their answers are out or not."""
        steps = (entry for entry in entries if isinstance(entry, Step))
        self.queue.finished(steps, time.monotonic())

    def _execute(self, entries: list[Entry], calls: list[Call]) -> None:
        first = entries[0]
        assert isinstance(first, Step), "it comes out of a SequenceQueue"
        assert first.line is not None, "it was pushed"
        self._engine.execute(calls, first.line.instance)
