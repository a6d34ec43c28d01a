"""Tokens into text, a step at a time: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import msgspec

from ds_engines.openvino_genai import Delta


class StopScanner:
    """Passes text on up to the first stop string; holds back what might become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None

    @property
    def hit(self) -> bool:
        """Whether one was found."""
        return self.found is not None

    def feed(self, text: str) -> str:
        """The text that is now sure to belong to the answer."""
        if self.hit:
            return ""
        text = self._held + text
        places = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            (at, self.found), self._held = min(places), ""
            return text[:at]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)


class TokenLogprob(msgspec.Struct):
    """A token of the answer; `start` and `end` are its place in the text, in characters.

    `logprob` is None for a prompt's first token, which nothing stands before.
    """

    piece: bytes
    logprob: float | None
    start: int
    end: int


class ToolCall(msgspec.Struct):
    """A whole call that the model wants, the choice's `index`th; `arguments` is JSON text."""

    index: int
    id: str
    name: str
    arguments: str


class Piece(msgspec.Struct):
    """What one delta adds to an answer. `finish` is "stop", "length" or "tool_calls" at the end,
    `stopped_by` the stop string that was found.
    """

    text: str
    logprobs: list[TokenLogprob]
    finish: str | None
    calls: list[ToolCall] = []
    stopped_by: str | None = None


class TextStream:
    """One choice's tokens becoming text.

    A character may be spread over several tokens: its bytes are held until it is whole. Bytes
    that can never be UTF-8 become U+FFFD; an unfinished character at the very end is dropped. At
    most `most` tokens are taken, and those of `ends` are no text. An `echo` is a prompt that the
    answer begins with; with `echoed` the first delta has it too.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        stops: Sequence[str] = (),
        *,
        ends: Sequence[int] = (),
        echo: Sequence[int] = (),
        echoed: bool = False,
        most: int | None = None,
    ) -> None:
        self._pieces = pieces
        self._ends = frozenset(ends)
        self._echo = list(echo)
        self._echoed = echoed
        self._most = most
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._scanner = StopScanner(stops)
        self._logprobs: list[TokenLogprob] = []
        self._decoded = 0
        self._sent = 0
        self.tokens = 0

    def feed(self, delta: Delta) -> Piece:
        """Take one delta in; a stop string found ends the answer whatever the delta says."""
        text = self._repeat(delta)
        for at, token in enumerate(delta.tokens):
            if self._most is not None and self.tokens >= self._most:
                break
            self.tokens += 1
            text += self._scanner.feed(self._decode(token, delta.logprobs[at : at + 1]))
            if self._scanner.hit:
                break
        found = self._scanner.found
        finish = delta.finish or None if found is None else "stop"
        if finish is not None and found is None:
            text += self._scanner.flush()
        self._sent += len(text)
        return Piece(text, self._release(finish is not None), finish, stopped_by=found)

    def _repeat(self, delta: Delta) -> str:
        """The prompt's text, at the first delta; stop strings may be in it."""
        echo, self._echo = self._echo, []
        logprobs: list[float | None] = []
        if echo and self._echoed:
            logprobs = [None, *delta.logprobs[1 : len(echo)]]
            delta.tokens, delta.logprobs = delta.tokens[len(echo) :], delta.logprobs[len(echo) :]
        return "".join(self._decode(token, logprobs[at : at + 1]) for at, token in enumerate(echo))

    def _decode(self, token: int, logprob: Sequence[float | None]) -> str:
        silent = token in self._ends or token >= len(self._pieces)
        piece = b"" if silent else self._pieces[token]
        text = self._decoder.decode(piece)
        start = self._decoded
        self._decoded += len(text)
        if logprob and piece:
            self._logprobs.append(TokenLogprob(piece, logprob[0], start, self._decoded))
        return text

    def _release(self, last: bool) -> list[TokenLogprob]:
        """The tokens whose text is out; at the end also one that a stop string cut in two."""
        sent = self._sent
        out = [t for t in self._logprobs if t.end <= sent or (last and t.start < sent)]
        self._logprobs = self._logprobs[len(out) :]
        return out
