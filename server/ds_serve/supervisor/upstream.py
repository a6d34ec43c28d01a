"""Keeps a model that another server has: no process of ours, so it is ready while it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from ds_engines.spec import ModelSpec
from ds_serve.supervisor.worker import READY, IdleKeeper
from ds_serve.upstream import Upstream

_serials = count(1)


class UpstreamKeeper(IdleKeeper):
    """Whether the other server answers, each gateway finds out with its requests to it."""

    def __init__(self, spec: ModelSpec, upstream: Upstream, on_change: Callable[[], None]) -> None:
        super().__init__(spec.name, spec.version, on_change)
        self.state.spec = spec
        self.state.upstream = upstream
        self.state.address = f"upstream-{next(_serials)}"

    async def run(self) -> None:
        if not self._stopping:
            self._become(READY)
        await super().run()
