"""Keeps an ensemble, which has no process: it is ready while all its members are, and fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import count

from ds_engines.spec import ModelSpec
from ds_serve.ensemble.members import judge
from ds_serve.supervisor.worker import FAILED, READY, IdleKeeper
from ds_serve.transport.messages import ModelState

log = logging.getLogger(__name__)

_serials = count(1)


class EnsembleKeeper(IdleKeeper):
    """`states`: those of all models, its members' among them."""

    def __init__(
        self,
        spec: ModelSpec,
        states: Callable[[], Sequence[ModelState]],
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(spec.name, spec.version, on_change)
        self.state.spec = self._spec = spec
        self._states = states
        self._running = False

    async def run(self) -> None:
        """Follow the members until stopped."""
        self._running = True
        self.look()
        await super().run()

    def look(self) -> None:
        if not self._running or self._stopping:
            return
        state, reason = judge(self._spec, self._states())
        if (state, reason) == (self.state.state, self.state.reason):
            return
        if state == READY:
            # Each time another: a gateway may still finish requests of the time before.
            self.state.address = f"ensemble-{next(_serials)}"
        elif state == FAILED:
            log.error("model %s has failed: %s", self.name, reason)
        elif self.ready:
            log.warning("model %s: %s", self.name, reason)
        self._become(state, reason)
