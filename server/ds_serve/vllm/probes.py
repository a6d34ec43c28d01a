"""Asking a vLLM server over its socket: for a first answer, and whether its engine still moves."""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import aiohttp
import orjson

NOT_OFFERED = frozenset({400, 404, 405, 422, 501})
"""What a server answers on a path that its model has no use for."""

_STEPS = re.compile(r"^vllm:iteration_tokens_total_count\{.*\} (\S+)$", re.MULTILINE)
_REQUESTS = re.compile(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", re.MULTILINE)

Ask = Callable[[str], Mapping[str, Any]]


class NoAnswer(Exception):
    """The model does not answer; the message says why."""


def _json(path: str, **fields: Any) -> tuple[str, Ask]:
    return path, lambda model: {"json": {"model": model, **fields}}


def _spoken(model: str) -> Mapping[str, Any]:
    form = aiohttp.FormData()
    form.add_field("model", model)
    form.add_field("file", _silence(), filename="silence.wav", content_type="audio/wav")
    form.add_field("max_completion_tokens", "1")
    form.add_field("language", "en")
    return {"data": form}


def _silence(seconds: float = 0.5, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(bytes(2 * round(seconds * rate)))
    return file.getvalue()


FIRST: tuple[tuple[str, Ask], ...] = (
    # Token 1 is in every vocabulary, and needs no tokenizer.
    _json("/v1/completions", prompt=[1], max_tokens=1, temperature=0),
    _json("/v1/embeddings", input=[1]),
    _json("/pooling", input=[1]),
    _json("/classify", input="1"),
    ("/v1/audio/transcriptions", _spoken),
)
"""The smallest thing that a model can be asked for, by what it does. Most offer one of them."""


async def first_answer(session: aiohttp.ClientSession, model: str, seconds: float) -> str:
    """Have the model do its work once. Returns the path that it did it on, "" where it takes none
    of those known here. Raises NoAnswer.
    """
    timeout = aiohttp.ClientTimeout(total=seconds)
    for path, ask in FIRST:
        try:
            async with session.post(path, timeout=timeout, **ask(model)) as answer:
                if answer.status == 200:
                    await answer.read()
                    return path
                if answer.status not in NOT_OFFERED:
                    raise NoAnswer(_message(await answer.read(), answer.status))
        except TimeoutError:
            raise NoAnswer(f"no token came within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswer(f"its server went away: {error or type(error).__name__}") from None
    return ""


class Pulse(NamedTuple):
    """`requests` in its hands, and `steps` that its engine has made; None: it does not say."""

    requests: int
    steps: float | None


async def pulse(session: aiohttp.ClientSession) -> Pulse:
    """Raises aiohttp.ClientError, TimeoutError, OSError."""
    async with session.get("/metrics") as answer:
        said = await answer.text()
    steps = [float(each) for each in _STEPS.findall(said)]
    # The metrics are as old as the last step: a request that hangs from the start is only here.
    requests = sum(int(float(each)) for each in _REQUESTS.findall(said)) or await _load(session)
    return Pulse(requests, sum(steps) if steps else None)


async def _load(session: aiohttp.ClientSession) -> int:
    async with session.get("/load") as answer:
        if answer.status != 200:
            return 0
        found = orjson.loads(await answer.read()).get("server_load", 0)
        return int(found) if isinstance(found, int | float) else 0


class Watchdog:
    """Whether an engine hangs: requests are there, no step was made for `patience` seconds, and a
    request for one token gets none for as long again.
    """

    def __init__(self, patience: float, now: Callable[[], float]) -> None:
        self._patience = patience
        self._now = now
        self._steps: float | None = None
        self._since = now()

    def suspects(self, seen: Pulse) -> bool:
        """Told what `pulse` has found, says whether a proof is due."""
        moved = seen.steps is None or seen.steps != self._steps
        if moved or not seen.requests:
            self._steps, self._since = seen.steps, self._now()
        return self._now() - self._since > self._patience

    async def hangs(self, session: aiohttp.ClientSession, model: str) -> bool:
        """Whether it answers no more. Another step meanwhile acquits it."""
        before = self._steps
        try:
            await first_answer(session, model, self._patience)
            hung = False
        except NoAnswer:
            hung = await _steps_or_none(session) in (before, None)
        self._since = self._now()
        return hung


async def _steps_or_none(session: aiohttp.ClientSession) -> float | None:
    try:
        return (await pulse(session)).steps
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None


def _message(body: bytes, status: int) -> str:
    try:
        found = orjson.loads(body)
        found = found.get("error", found)
        return str(found.get("message") or f"status {status}")[:500]
    except (ValueError, AttributeError):
        return f"status {status}: {body[:300].decode(errors='replace')}"
