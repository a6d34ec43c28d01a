"""The way from the gateway to a text model: to a worker of its, or to the next where one dies."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from hashlib import blake2b
from typing import Protocol

import msgspec

from ds_engines.errors import Lost, ServeError, Unavailable
from ds_serve.gateway.config import Limits
from ds_serve.gateway.text_admission import Admission
from ds_serve.gateway.text_body import WRITES, Body, with_fields, with_model
from ds_serve.gateway.text_hop import Hop, Reply, load_of
from ds_serve.gateway.text_load import Load, together
from ds_serve.gateway.text_replicas import in_order
from ds_serve.security.text_ledger import Seat
from ds_serve.upstream import ENGINE

LOOK_SECONDS = 5.0

RANKS = frozenset({"openvino-genai"})
"""Engines whose own queues know priorities."""

SALTED = frozenset({"vllm"})
"""Engines that keep prefixes of different `cache_salt` apart."""

PLAIN = {"vllm": re.compile(r"^/v1(?=/(?:classify|tokenize|detokenize|pooling)/?(?:\?|$))")}
"""Of an engine that has some of its paths without `/v1` alone: what it is asked without."""


class Ask(msgspec.Struct):
    """A request to a text model, as its worker gets it, but for what `for_engine` changes.

    `path` has the query. `about` is what was read out of the body, None where it was not read.
    `key` is the name of the caller's, `priority` lower for what is earlier, `timeout` in seconds.
    `address`: of the one worker that it is for; "" where any will do.
    """

    method: str
    path: str
    body: bytes
    headers: dict[str, str]
    timeout: float
    about: Body | None = None
    key: str = ""
    priority: int = 0
    address: str = ""

    @property
    def content_type(self) -> bytes:
        return self.headers.get("content-type", "").encode("latin-1")

    @property
    def is_form(self) -> bool:
        return self.content_type.lower().startswith(b"multipart/form-data")

    def named(self, model: str) -> bytes:
        """The body with another model's name."""
        assert self.about is not None, "only a body that was read names a model"
        if self.about.model == model:
            return self.body
        return with_model(self.content_type, self.body, model)

    def path_for(self, engine: str) -> str:
        """The path by the name that the engine has for it."""
        return PLAIN[engine].sub("", self.path) if engine in PLAIN else self.path

    def for_engine(self, engine: str, names: tuple[str, str] = ("", "")) -> bytes:
        """The body without what only the gateway understands, with the key's own salt, and with
        the second of two names where it has the first. Adapters keep their names.
        """
        if self.about is None:
            return self.body
        mine, theirs = names
        renamed = mine != theirs and self.about.model == mine
        if self.is_form:
            return self.named(theirs) if renamed else self.body
        changes: dict[str, object | None] = {}
        if renamed:
            changes["model"] = theirs
        if engine in RANKS and WRITES.fullmatch(self.path.partition("?")[0]):
            if self.priority or self.about.has_priority:
                changes["priority"] = self.priority
        elif self.about.has_priority and engine != ENGINE:
            changes["priority"] = None
        if self.key and engine in SALTED:
            changes["cache_salt"] = salted(self.key, self.about.salt)
        return with_fields(self.body, changes) if changes else self.body


def prefix_of(ask: Ask, routing: str) -> bytes:
    """By what a replica is chosen: requests of one key that begin alike go to the same."""
    if routing != "prefix":
        return os.urandom(8)
    return b"" if ask.about is None else ask.key.encode() + ask.about.prefix


def salted(key: str, own: str) -> str:
    """Different for each key, whatever salts of their own clients send."""
    salt = blake2b(key.encode(), digest_size=12, person=b"ds-serve").hexdigest()
    return f"{salt}-{own}" if own else salt


class Way(Protocol):
    """`in_flight`: requests that are not answered yet. `addresses`: of all workers; `remote`:
    whether they are another server's. `trouble`: why requests are refused now, "" where not.
    """

    @property
    def in_flight(self) -> int: ...

    @property
    def addresses(self) -> list[str]: ...

    @property
    def remote(self) -> bool: ...

    @property
    def trouble(self) -> str: ...

    def forward(self, ask: Ask) -> AbstractAsyncContextManager[Reply]:
        """A context with the answer as it arrives. Raises the errors of ds_engines.errors."""

    def pump(self) -> None:
        """Let in who waits, as far as there is room."""

    def close(self, reason: ServeError) -> None:
        """Requests in flight break off; they then raise `reason`."""


class WorkerWay:
    """To a model's workers on this machine, each at a socket."""

    remote = False
    trouble = ""

    def __init__(
        self,
        name: str,
        engine: str,
        addresses: Iterable[str],
        *,
        seat: Seat,
        limits: Limits,
    ) -> None:
        self._name = name
        self._engine = engine
        self._routing = limits.replica_routing
        self._admission = Admission(
            name, seat, self._look, limits.max_tokens_in_flight, limits.max_text_queue
        )
        self._reason: ServeError | None = None
        self._lost = f"model {name!r} lost this request: its worker went away"
        self._hops: dict[str, Hop] = {}
        self._leaving: set[Hop] = set()
        self.move(addresses)

    def move(self, addresses: Iterable[str]) -> None:
        """The workers are these from now on; what others have under way, they finish."""
        wanted = list(addresses)
        for address in self._hops.keys() - set(wanted):
            self._leaving.add(self._hops.pop(address))
        for address in wanted:
            if address not in self._hops:
                self._hops[address] = Hop(address, self._lost)
        for hop in [hop for hop in self._leaving if not hop.in_flight]:
            self._leaving.discard(hop)
            hop.close(Lost(self._lost))

    def pump(self) -> None:
        """Others have left room."""
        self._admission.pump()

    @property
    def in_flight(self) -> int:
        return self._admission.waiting + sum(
            hop.in_flight for hop in (*self._hops.values(), *self._leaving)
        )

    @property
    def addresses(self) -> list[str]:
        return list(self._hops)

    @asynccontextmanager
    async def forward(self, ask: Ask) -> AsyncIterator[Reply]:
        body = ask.for_engine(self._engine)
        prefix = prefix_of(ask, self._routing)
        ask = msgspec.structs.replace(ask, path=ask.path_for(self._engine))
        async with AsyncExitStack() as stack:
            if ask.about is not None and ask.about.tokens:
                room = self._admission.room(ask.key, ask.about.tokens, ask.priority, ask.timeout)
                await stack.enter_async_context(room)
            yield await self._first(stack, ask, body, prefix)

    async def _first(self, stack: AsyncExitStack, ask: Ask, body: bytes, prefix: bytes) -> Reply:
        """The answer of the first worker that gives one: one that dies before its first byte is
        left at once, and the next is asked.
        """
        tried: set[str] = set()
        trouble: Lost | None = None
        while True:
            loads = {
                address: hop.in_flight
                for address, hop in self._hops.items()
                if address not in tried and ask.address in ("", address)
            }
            if not loads:
                raise trouble or self._reason or Unavailable(f"model {self._name!r} has no worker")
            address = in_order(prefix, loads)[0]
            tried.add(address)
            exchange = self._hops[address].exchange(ask.method, ask.path, body, ask.headers)
            try:
                reply = await stack.enter_async_context(exchange)
            except Lost as error:
                trouble = error
                continue
            if len(self._hops) > 1:
                try:
                    await reply.first()
                except Lost as error:
                    trouble = error
                    continue
            return reply

    async def _look(self) -> Load:
        """What the workers' metrics say of their caches."""
        async with asyncio.timeout(LOOK_SECONDS):
            return together(await asyncio.gather(*map(load_of, list(self._hops.values()))))

    def close(self, reason: ServeError) -> None:
        """Requests in flight break off; they then raise `reason`."""
        self._reason = reason
        self._admission.close(reason)
        for hop in (*self._hops.values(), *self._leaving):
            hop.close(reason)
