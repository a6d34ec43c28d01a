"""A streamed chat completion, with the moments at which its tokens came."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from geventhttpclient.response import HTTPSocketPoolResponse

from loadtests.load.callers import Connection, Failed

PATH = "/v1/chat/completions"
HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream"}


@dataclass
class Answer:
    """The text, the seconds on the clock at which each piece came, and the tokens it took."""

    begun: float
    text: str = ""
    came: list[float] = field(default_factory=list)
    tokens: int = 0
    finished: str = ""

    @property
    def first(self) -> float:
        """Milliseconds to the first piece."""
        return (self.came[0] - self.begun) * 1e3

    @property
    def gaps(self) -> list[float]:
        """Milliseconds between one piece and the next."""
        return [
            (after - before) * 1e3 for before, after in zip(self.came, self.came[1:], strict=False)
        ]

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first; None where there was one piece only."""
        seconds = self.came[-1] - self.came[0]
        return (self.tokens - 1) / seconds if self.tokens > 1 and seconds > 0 else None

    def add(self, event: dict[str, Any]) -> None:
        """One event of the stream. Raises Failed where it is an error."""
        if "error" in event:
            raise Failed(f"the stream ended with {event['error']}")
        if usage := event.get("usage"):
            self.tokens = usage["completion_tokens"]
        for choice in event.get("choices", ()):
            if piece := choice.get("delta", {}).get("content"):
                self.came.append(time.perf_counter())
                self.text += piece
            self.finished = choice.get("finish_reason") or self.finished


class Chat:
    """OpenAI's chat completions as server-sent events."""

    def __init__(self, address: str, model: str, timeout: float) -> None:
        self._connection = Connection(address, timeout)
        self._model = model

    def send(self, prompt: dict[str, Any]) -> Answer:
        """Raises Refused and Failed."""
        body = prompt | {
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = Answer(time.perf_counter())
        response = self._connection.post(PATH, json.dumps(body).encode(), HEADERS)
        try:
            _read(response, answer)
        except OSError as error:
            raise Failed(f"the connection failed: {error or type(error).__name__}") from None
        if not answer.came:
            raise Failed("the answer has no text")
        if not answer.finished:
            raise Failed("the answer has no finish_reason")
        if not answer.tokens:
            raise Failed("the answer has no usage")
        return answer

    def close(self) -> None:
        self._connection.close()


def _read(response: HTTPSocketPoolResponse, answer: Answer) -> None:
    while line := bytes(response.readline(b"\n")):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            response.read()
            return
        answer.add(json.loads(data))
    raise Failed("the stream ended before [DONE]")
