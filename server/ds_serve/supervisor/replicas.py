"""Several workers of one model: it answers while one of them does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import count

from ds_serve.supervisor.worker import FAILED, LOADING, READY, RESTARTING, STOPPED, Keeper

_serials = count(1)


class ReplicasKeeper(Keeper):
    """`hire` makes each replica's keeper, told its number and what to call on a change.

    `together`: the model is ready once all of them have been, and has failed if one cannot begin.
    """

    def __init__(
        self,
        replicas: int,
        hire: Callable[[int, Callable[[], None]], Keeper],
        on_change: Callable[[], None],
        *,
        together: bool = False,
    ) -> None:
        self._waits = together
        self._keepers = [hire(number, self._look_again) for number in range(replicas)]
        first = self._keepers[0].state
        super().__init__(first.name, first.version, on_change)
        self.state.spec = first.spec
        # Stays the same while its replicas come and go.
        self.state.address = f"replicas-{next(_serials)}"

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for keeper in self._keepers:
                group.create_task(keeper.run())
        if self._stopping:
            self._become(STOPPED)

    def retire(self) -> None:
        super().retire()
        for keeper in self._keepers:
            keeper.retire()

    async def stop(self, grace: float) -> None:
        self._stopping = True
        await asyncio.gather(*(keeper.stop(grace) for keeper in self._keepers))

    def kill(self) -> None:
        self._stopping = True
        for keeper in self._keepers:
            keeper.kill()

    def _look_again(self) -> None:
        """A replica's state has changed. The model is restarting once none is left that answers."""
        states = [keeper.state for keeper in self._keepers]
        ready = [state for state in states if state.state == READY]
        self.state.replicas = tuple(state.address for state in ready)
        self.state.incarnation = sum(state.incarnation for state in states)
        self.state.spec = next((state.spec for state in ready), self.state.spec)
        kind = self._kind({state.state for state in states})
        self._become(kind, "" if kind == READY else _reasons(self._keepers))

    def _kind(self, kinds: set[str]) -> str:
        if self._waits and kinds == {READY}:
            self._waits = False
        if self._waits and FAILED in kinds:
            for keeper in self._keepers:
                keeper.kill()
            return FAILED
        order = (RESTARTING, LOADING, READY) if self._waits else (READY, RESTARTING, LOADING)
        return next(each for each in (*order, FAILED, STOPPED) if each in kinds)


def _reasons(keepers: Sequence[Keeper]) -> str:
    """Each reason once, with the numbers of those that have it."""
    found: dict[str, list[str]] = {}
    for number, keeper in enumerate(keepers):
        if keeper.state.reason:
            found.setdefault(keeper.state.reason, []).append(str(number))
    return "; ".join(f"replica {', '.join(who)}: {reason}" for reason, who in found.items())
