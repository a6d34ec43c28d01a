"""OpenAI's answers: objects, stream chunks, usage and log-probabilities."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ds_serve.text.text_stream import Piece, TokenLogprob, ToolCall

DONE = b"data: [DONE]\n\n"
encode = msgspec.json.Encoder().encode


def event(body: object) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(body) + b"\n\n"


def named_event(body: Mapping[str, object]) -> bytes:
    """One server-sent event, named by its type."""
    return f"event: {body['type']}\n".encode() + event(body)


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Token counts, an end token included in the completion's."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def models(
    name: str, created: int, max_seq_len: int | None, adapters: Sequence[str] = ()
) -> dict[str, Any]:
    """The list of the one model and its adapters."""
    model: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "ds-serve",
    }
    if max_seq_len is not None:
        model["max_model_len"] = max_seq_len
    others = [model | {"id": adapter, "parent": name} for adapter in adapters]
    return {"object": "list", "data": [model, *others]}


class ChatAnswer:
    """Writes a chat's answer, whole or in chunks."""

    written = staticmethod(event)

    def __init__(self, model: str, fingerprint: str, want_logprobs: bool) -> None:
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._want_logprobs = want_logprobs

    def whole(self, choices: Sequence[Piece], counts: dict[str, int]) -> dict[str, Any]:
        found = [self._whole_choice(at, piece) for at, piece in enumerate(choices)]
        return self._head | {"object": "chat.completion", "choices": found, "usage": counts}

    def _whole_choice(self, at: int, piece: Piece) -> dict[str, Any]:
        return {
            "index": at,
            "message": _message(piece),
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": piece.finish,
        }

    def opening(self, at: int, prompt: int) -> list[dict[str, Any]]:
        """What a choice's stream begins with."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk([_chat_choice(at, delta, None, None)])]

    def chunks(self, at: int, piece: Piece) -> list[dict[str, Any]]:
        delta: dict[str, Any] = {"content": piece.text} if piece.text or piece.logprobs else {}
        if piece.calls:
            delta["tool_calls"] = [{"index": call.index} | _call(call) for call in piece.calls]
        logprobs = self._logprobs(piece.logprobs)
        if not (piece.calls and piece.finish):
            return [self._chunk([_chat_choice(at, delta, logprobs, piece.finish)])]
        # Clients close a call at the chunk after it.
        called = _chat_choice(at, delta, logprobs, None)
        return [self._chunk([called]), self._chunk([_chat_choice(at, {}, None, piece.finish)])]

    def closing(self, counts: dict[str, int], with_usage: bool) -> list[bytes]:
        """What the stream ends with."""
        return _closing(self._chunk([]) | {"usage": counts}, with_usage)

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"object": "chat.completion.chunk", "choices": choices}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._want_logprobs:
            return None
        return {"content": [_chat_logprob(token) for token in tokens], "refusal": None}


def _message(piece: Piece) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": piece.text, "refusal": None}
    if piece.calls:
        message["content"] = piece.text or None
        message["tool_calls"] = [_call(call) for call in piece.calls]
    return message


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _chat_choice(
    at: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None
) -> dict[str, Any]:
    return {"index": at, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _chat_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": _spelling(token),
        "logprob": token.logprob,
        "bytes": list(token.piece),
        "top_logprobs": [],
    }


def _spelling(token: TokenLogprob) -> str:
    return token.piece.decode("utf-8", "replace")


class CompletionAnswer:
    """Writes a completion's answer, whole or in chunks."""

    written = staticmethod(event)

    def __init__(self, model: str, fingerprint: str, want_logprobs: bool) -> None:
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._want_logprobs = want_logprobs

    def whole(self, choices: Sequence[Piece], counts: dict[str, int]) -> dict[str, Any]:
        found = [self._choice(at, piece) for at, piece in enumerate(choices)]
        return self._head | {"choices": found, "usage": counts}

    def opening(self, at: int, prompt: int) -> list[dict[str, Any]]:
        """A completion's stream begins with its text."""
        return []

    def chunks(self, at: int, piece: Piece) -> list[dict[str, Any]]:
        return [self._head | {"choices": [self._choice(at, piece)]}]

    def closing(self, counts: dict[str, int], with_usage: bool) -> list[bytes]:
        """What the stream ends with."""
        return _closing(self._head | {"choices": [], "usage": counts}, with_usage)

    def _choice(self, at: int, piece: Piece) -> dict[str, Any]:
        return {
            "index": at,
            "text": piece.text,
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": piece.finish,
        }

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._want_logprobs:
            return None
        return {
            "tokens": [_spelling(token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": None,
            "text_offset": [token.start for token in tokens],
        }


def _closing(usage_chunk: dict[str, Any], with_usage: bool) -> list[bytes]:
    return [event(usage_chunk), DONE] if with_usage else [DONE]


class Answer(Protocol):
    """Writes an answer: whole, or as the events of a stream. `written` makes bytes of a chunk,
    `prompt` is the prompts' length in tokens.
    """

    def written(self, chunk: dict[str, Any], /) -> bytes: ...

    def whole(self, choices: Sequence[Piece], counts: dict[str, int]) -> dict[str, Any]: ...

    def opening(self, at: int, prompt: int) -> list[dict[str, Any]]: ...

    def chunks(self, at: int, piece: Piece) -> list[dict[str, Any]]: ...

    def closing(self, counts: dict[str, int], with_usage: bool) -> list[bytes]: ...
