"""Clients that keep one streamed chat each in flight, and what they saw."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from loadtests.perf_analyzer import BenchmarkError

# Each is one token with a blank before it in most vocabularies: a prompt's length is then known.
WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
]
ANSWER_SECONDS = 600.0


@dataclass
class Seen:
    """One answer. Times in seconds: to the first text, and between one piece of it and the next."""

    began: float
    first: float = 0.0
    ended: float = 0.0
    gaps: list[float] = field(default_factory=list)
    pieces: int = 0
    usage: tuple[int, int] | None = None

    @property
    def tokens(self) -> int:
        """As the server counts them, or else the pieces."""
        return self.usage[1] if self.usage else self.pieces


class Chats:
    """Requests to one server. `extra` are its own fields of a body."""

    def __init__(self, http: int, model: str, tokens_out: int, extra: Mapping[str, Any]) -> None:
        self._url = f"http://127.0.0.1:{http}/v1/chat/completions"
        self._body = {
            "model": model,
            "max_tokens": tokens_out,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **extra,
        }
        self._chance = random.Random(0)

    async def one(self, session: aiohttp.ClientSession, words: int) -> Seen:
        """Raises BenchmarkError for an answer that is an error, or has no text."""
        prompt = " ".join(self._chance.choices(WORDS, k=words))
        body = self._body | {"messages": [{"role": "user", "content": prompt}]}
        seen = Seen(time.perf_counter())
        try:
            async with session.post(self._url, json=body) as answer:
                if answer.status != 200:
                    raise BenchmarkError(f"status {answer.status}: {(await answer.text())[:500]}")
                async for line in answer.content:
                    if line.startswith(b"data:"):
                        _note(seen, line[5:].strip())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise BenchmarkError(f"an answer broke off: {error!r}") from None
        seen.ended = time.perf_counter()
        if not seen.pieces:
            raise BenchmarkError("an answer has no text in it")
        return seen

    async def words_for(self, tokens: int) -> int:
        """How many words a prompt of so many tokens has, with what the chat template adds."""
        async with _session() as session:
            few = await self.one(session, 8)
        if few.usage is None:
            raise BenchmarkError("the server does not say how many tokens a prompt has")
        if (words := tokens - few.usage[0] + 8) < 1:
            raise BenchmarkError(f"the chat template alone takes {few.usage[0] - 8} tokens")
        return words

    async def load(self, clients: int, words: int, seconds: float) -> list[Seen]:
        """All answers that were begun within `seconds`, each waited for to its end."""
        until = time.perf_counter() + seconds
        found: list[Seen] = []

        async def client() -> None:
            while time.perf_counter() < until:
                found.append(await self.one(session, words))

        try:
            async with _session() as session, asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(client())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return found


def _session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))


def _note(seen: Seen, data: bytes) -> None:
    """One event of the stream. Raises BenchmarkError where it tells of an error."""
    if data == b"[DONE]":
        return
    event = json.loads(data)
    if "error" in event:
        raise BenchmarkError(f"an answer broke off: {event['error']}")
    if usage := event.get("usage"):
        seen.usage = usage["prompt_tokens"], usage["completion_tokens"]
    if any((choice.get("delta") or {}).get("content") for choice in event.get("choices", ())):
        now = time.perf_counter()
        if seen.pieces:
            seen.gaps.append(now - seen.first - sum(seen.gaps))
        else:
            seen.first = now
        seen.pieces += 1
