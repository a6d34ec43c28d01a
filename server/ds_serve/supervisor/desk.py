"""What clients of any gateway ask of the server is done here, and answered to that gateway."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ds_engines.errors import EngineFailure, ServeError
from ds_serve.supervisor.control import Control
from ds_serve.supervisor.manager import Manager
from ds_serve.supervisor.tunables import Tunables
from ds_serve.transport.messages import Fault, Reply
from ds_serve.transport.orders import Index, Load, Log, Order, Trace, Unload

log = logging.getLogger(__name__)


class Desk:
    """Orders are carried out side by side; those that concern one model, one after the other."""

    def __init__(self, control: Control, manager: Manager, tunables: Tunables) -> None:
        self._control = control
        self._manager = manager
        self._tunables = tunables
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, identity: str, order: Order) -> None:
        """An order from the gateway of that name."""
        task = asyncio.create_task(self._answer(identity, order))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _answer(self, identity: str, order: Order) -> None:
        reply = Reply(order.id)
        try:
            reply.value = await self._do(order)
        except ServeError as error:
            reply.fault = Fault.of(error)
        except Exception:
            log.exception("an order failed: %s", type(order).__name__)
            reply.fault = Fault.of(EngineFailure("the server failed on this; its log says why"))
        self._control.send(identity, reply)

    async def _do(self, order: Order) -> Any:
        match order:
            case Index():
                return await self._manager.index(order.ready)
            case Load():
                await self._manager.load(order.name, order.config, order.files)
            case Unload():
                await self._manager.unload(order.name, order.dependents)
            case Trace():
                return self._tunables.trace(order.model, order.changes)
            case Log():
                return self._tunables.log(order.changes)
        return None
