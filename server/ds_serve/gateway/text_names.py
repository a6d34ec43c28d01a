"""The names that text models answer to: their own, and those of adapters that workers have."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from ds_engines.errors import NotFound, ServeError
from ds_serve.gateway.text_way import Ask

if TYPE_CHECKING:
    from ds_serve.gateway.gateway import Gateway
    from ds_serve.gateway.text import TextBackend

log = logging.getLogger(__name__)

ASK_SECONDS = 2.0
LEARN_EVERY = 1.0
"""Seconds. A name that nobody knows has the workers asked for theirs, no oftener than this."""

STARTED = int(time.time())

Card = dict[str, Any]


class Names:
    """Of one gateway. Which adapters there are, the workers alone know."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._adapters: dict[str, str] = {}
        self._learnt = -LEARN_EVERY

    async def find(self, name: str) -> tuple[str, TextBackend]:
        """The model of that name, or the one whose adapter it is. Raises NotFound, Unavailable."""
        model = self._adapters.get(name, name)
        try:
            return model, self._gateway.text(model)
        except NotFound:
            if not await self._learn():
                raise
        model = self._adapters.get(name, name)
        return model, self._gateway.text(model)

    def forget(self) -> None:
        """An adapter came or went: ask again at once."""
        self._learnt = -LEARN_EVERY
        self._adapters = {}

    async def cards(self, allows: Callable[[str], bool]) -> list[Card]:
        """What /v1/models lists: each model that is ready, and after it its adapters."""
        models = {name: card for name, card in (await self._cards()).items() if allows(name)}
        return [card for cards in models.values() for card in cards]

    async def card(self, name: str) -> Card | None:
        """Of the model or adapter of that name."""
        every = await self.cards(lambda _: True)
        return next((card for card in every if card["id"] == name), None)

    async def _learn(self) -> bool:
        """Ask for all names; False where that was done just now."""
        if time.monotonic() - self._learnt < LEARN_EVERY or not self._gateway.texts():
            return False
        await self._cards()
        return True

    async def _cards(self) -> dict[str, list[Card]]:
        self._learnt = time.monotonic()
        backends = self._gateway.texts()
        found = await asyncio.gather(*map(_cards_of, backends.values()))
        cards = dict(zip(backends, found, strict=True))
        self._adapters = {
            card["id"]: name
            for name, several in cards.items()
            for card in several
            if card["id"] not in cards
        }
        return cards


async def _cards_of(backend: TextBackend) -> list[Card]:
    """The model's own first. What its worker does not say in time is left out."""
    name = backend.spec.name
    plain = {"id": name, "object": "model", "created": STARTED, "owned_by": "ds-serve"}
    if backend.way.remote:
        return [plain]
    try:
        async with asyncio.timeout(ASK_SECONDS):
            said = await _said(backend)
    except (ServeError, TimeoutError, ValueError, KeyError, TypeError) as error:
        log.debug("model %s: its worker lists no models: %s", name, error)
        return [plain]
    own = next((card for card in said if card["id"] == name), {})
    return [own | plain, *(card for card in said if card["id"] != name)]


async def _said(backend: TextBackend) -> list[Card]:
    ask = Ask("GET", "/v1/models", b"", {"accept": "application/json"}, ASK_SECONDS)
    async with backend.way.forward(ask) as reply:
        cards: list[Card] = orjson.loads(await reply.read())["data"]
    return [dict(card) for card in cards if isinstance(card["id"], str)]
