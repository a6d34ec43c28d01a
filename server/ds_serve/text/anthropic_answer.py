"""Anthropic's answers to `/v1/messages`: a message of blocks, whole or as events."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from ds_serve.text.answers import named_event
from ds_serve.text.text_stream import Piece, ToolCall

Block = dict[str, Any]
Event = dict[str, Any]

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


class MessageAnswer:
    """Writes a message. Its blocks are a text, where there is one, and calls after it."""

    written = staticmethod(named_event)

    def __init__(self, model: str, fingerprint: str, want_logprobs: bool) -> None:
        self._head: Block = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }
        self._blocks = 0
        self._open = False
        self._last = Piece("", [], None)

    def whole(self, choices: Sequence[Piece], counts: dict[str, int]) -> Block:
        (piece,) = choices
        text = [{"type": "text", "text": piece.text}] if piece.text else []
        calls = [_call(call, msgspec.json.decode(call.arguments)) for call in piece.calls]
        usage = {"usage": _usage(counts["prompt_tokens"], counts["completion_tokens"])}
        return self._head | {"content": text + calls} | _end(piece) | usage

    def opening(self, at: int, prompt: int) -> list[Event]:
        """What the stream begins with."""
        end = {"stop_reason": None, "stop_sequence": None}
        message = self._head | {"content": []} | end | {"usage": _usage(prompt, 0)}
        return [{"type": "message_start", "message": message}]

    def chunks(self, at: int, piece: Piece) -> list[Event]:
        found = self._said(piece.text) if piece.text else []
        for call in piece.calls:
            found += self._called(call)
        if piece.finish:
            self._last = piece
            found += self._closed()
        return found

    def closing(self, counts: dict[str, int], with_usage: bool) -> list[bytes]:
        """What the stream ends with."""
        usage = _usage(counts["prompt_tokens"], counts["completion_tokens"])
        ended = {"type": "message_delta", "delta": _end(self._last), "usage": usage}
        return [named_event(each) for each in (ended, {"type": "message_stop"})]

    def _said(self, text: str) -> list[Event]:
        found = [] if self._open else [self._begun({"type": "text", "text": ""})]
        self._open = True
        return [*found, self._delta({"type": "text_delta", "text": text})]

    def _called(self, call: ToolCall) -> list[Event]:
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        found = [*self._closed(), self._begun(_call(call, {})), self._delta(delta)]
        self._open = True
        return found + self._closed()

    def _begun(self, block: Block) -> Event:
        return {"type": "content_block_start", "index": self._blocks, "content_block": block}

    def _delta(self, delta: Block) -> Event:
        return {"type": "content_block_delta", "index": self._blocks, "delta": delta}

    def _closed(self) -> list[Event]:
        if not self._open:
            return []
        self._open = False
        self._blocks += 1
        return [{"type": "content_block_stop", "index": self._blocks - 1}]


def _call(call: ToolCall, arguments: Any) -> Block:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _end(piece: Piece) -> Block:
    usual = "end_turn" if piece.stopped_by is None else "stop_sequence"
    reason = _REASONS.get(piece.finish or "", usual)
    return {"stop_reason": reason, "stop_sequence": piece.stopped_by}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"input_tokens": prompt, "output_tokens": completion}
