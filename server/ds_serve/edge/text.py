"""Text that a small model passes on: long prompts before it has answered, poor answers after."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from ds_engines.errors import EngineFailure, Overloaded, ServeError, Unavailable
from ds_engines.spec import ModelSpec
from ds_serve.edge import marks
from ds_serve.edge.rules import Rule
from ds_serve.gateway.text import TextBackend
from ds_serve.gateway.text_body import BYTES_PER_TOKEN, WRITES
from ds_serve.gateway.text_hop import Reply
from ds_serve.gateway.text_way import Ask

log = logging.getLogger(__name__)

BUSY = frozenset({429, 500, 502, 503, 504})
"""Statuses of the small model's that are as good as no answer."""

Find = Callable[[str], TextBackend]
"""From a model's name to the way there. Raises NotFound, Unavailable."""


class Out(Protocol):
    """The client's side; `marks` are headers of the answer that has not started."""

    marks: marks.Headers
    started: bool


Copy = Callable[[Reply, Any, ModelSpec], Awaitable[None]]


class _Message(msgspec.Struct):
    content: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    finish_reason: Any = None
    text: Any = None
    message: _Message | None = None


class _Whole(msgspec.Struct):
    choices: list[_Choice] = []


class _Asked(msgspec.Struct):
    stream: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


_whole = msgspec.json.Decoder(_Whole).decode
_asked = msgspec.json.Decoder(_Asked).decode


def is_long(rule: Rule, ask: Ask) -> bool:
    """Whether the prompt alone has more tokens than the small model is to have."""
    if not rule.tokens or not _writes(ask):
        return False
    given = _asked(ask.body)
    size = len(bytes(given.messages)) + len(bytes(given.prompt)) + len(bytes(given.input))
    return size > rule.tokens * BYTES_PER_TOKEN


def judges(rule: Rule, ask: Ask) -> bool:
    """Whether the small model's answer is to be read whole before it is passed on: a stream's
    beginning has left when its end is known.
    """
    return rule.judges and _writes(ask) and not _asked(ask.body).stream


def is_poor(rule: Rule, answer: bytes) -> bool:
    """Whether the answer, of a chat or of a completion, is one that the rule passes on."""
    try:
        choices = _whole(answer).choices
    except msgspec.MsgspecError:
        return False
    reasons = set(filter(None, rule.finish.split(",")))
    if any(choice.finish_reason in reasons for choice in choices):
        return True
    return bool(rule.refusal) and any(_pattern(rule.refusal).search(t) for t in _texts(choices))


class Escalation:
    """One request to a small model that has a rule. `find` leads to the other model, `copy` passes
    an answer on.
    """

    def __init__(self, rule: Rule, ask: Ask, own: TextBackend, find: Find, copy: Copy) -> None:
        self._rule = rule
        self._ask = ask
        self._own = own
        self._find = find
        self._copy = copy

    async def answered(self, out: Out) -> bool:
        """Whether the request is answered; if not, the small model is to answer as ever. Raises
        ServeError where neither can.
        """
        if is_long(self._rule, self._ask):
            if await self._passed(out):
                return True
            self._mark(out, marks.DEGRADED_OUTCOME)
            return False
        if not judges(self._rule, self._ask):
            self._mark(out, marks.LOCAL)
            return False
        await self._judged(out)
        return True

    async def _judged(self, out: Out) -> None:
        """Have the small model answer, and the other where that is poor or none."""
        outcome, own, error = marks.LOCAL, None, None
        try:
            async with self._own.way.forward(self._ask) as reply:
                answer = await reply.read()
                own = _again(reply, answer)
        except (Overloaded, Unavailable, EngineFailure) as failure:
            error = failure
        if own is None or own.status in BUSY or (own.status < 300 and is_poor(self._rule, answer)):
            if await self._passed(out):
                return
            outcome = marks.DEGRADED_OUTCOME
        if own is None:
            assert error is not None, "one or the other"
            raise error
        self._mark(out, outcome)
        await self._copy(own, out, self._own.spec)

    async def _passed(self, out: Out) -> bool:
        """Whether the other model has answered."""
        try:
            async with self._other() as (reply, other):
                tier = reply.headers.get("x-ds-tier", "")
                degraded = "x-ds-degraded" in reply.headers
                further = int(tier) if tier.isdecimal() else 0
                out.marks = marks.as_headers(1 + further, degraded=degraded)
                await self._copy(reply, out, other.spec)
        except ServeError as error:
            if out.started:
                raise
            out.marks = []
            name = self._own.spec.name
            log.info("model %s: %s was not to be asked: %s", name, self._rule.to, error)
            return False
        marks.answers.labels(self._own.spec.name, marks.ESCALATED).inc()
        return True

    @asynccontextmanager
    async def _other(self) -> AsyncIterator[tuple[Reply, TextBackend]]:
        """The other model's answer, of which something has come. Raises ServeError where it has
        failed, or has not begun within the rule's time.
        """
        rule, ask = self._rule, self._ask
        backend = self._find(rule.to)
        assert ask.about is not None, "only a body that was read is passed on"
        about = ask.about._replace(model=rule.to)
        asked = msgspec.structs.replace(ask, body=ask.named(rule.to), about=about)
        try:
            async with asyncio.timeout(rule.seconds) as limit, backend.way.forward(asked) as reply:
                await reply.first()
                if reply.status >= 400:
                    raise Unavailable(f"it answered {reply.status}")
                limit.reschedule(None)
                yield reply, backend
        except TimeoutError:
            raise Unavailable(f"it did not begin within {rule.seconds:g} s") from None

    def _mark(self, out: Out, outcome: str) -> None:
        """An answer of the small model's own."""
        out.marks = marks.as_headers(0, degraded=outcome == marks.DEGRADED_OUTCOME)
        marks.answers.labels(self._own.spec.name, outcome).inc()


def _again(reply: Reply, body: bytes) -> Reply:
    """An answer that was read, to be read once more."""
    kept = Reply()
    kept.status, kept.headers = reply.status, reply.headers
    kept.started = kept.complete = True
    kept._add(body)
    return kept


def _writes(ask: Ask) -> bool:
    return not ask.is_form and bool(WRITES.fullmatch(ask.path.partition("?")[0]))


def _texts(choices: list[_Choice]) -> Iterator[str]:
    for choice in choices:
        for text in (choice.text, choice.message.content if choice.message else None):
            if isinstance(text, str):
                yield text


@lru_cache(64)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)
