"""`/v1/responses`: OpenAI's newer form of a chat, mapped onto the older. Nothing is stored."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ds_serve.text.answers import encode, named_event
from ds_serve.text.bodies import convert
from ds_serve.text.errors import BadField
from ds_serve.text.fields import Wanted, chat_request
from ds_serve.text.text_stream import Piece, ToolCall

_PASSED = ("temperature", "top_p", "stream", "tool_choice", "parallel_tool_calls", "priority")
_TEXT_PARTS = ("input_text", "output_text", "text")


class ResponseBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/responses`. Fields that a chat has too are checked as a chat's."""

    model: str
    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Any = None
    top_p: Any = None
    stream: Any = None
    tools: list[dict[str, Any]] = []
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    priority: Any = None
    text: dict[str, Any] = {}
    truncation: str = "disabled"
    include: list[str] = []
    background: bool = False


def response_request(body: bytes) -> Wanted:
    """Check a request. Raises InvalidRequest; BadField where a field is at fault."""
    fields = convert(body, ResponseBody)
    if fields.background:
        raise BadField("background", "background true is not supported", "unsupported_value")
    chat: dict[str, Any] = {name: getattr(fields, name) for name in _PASSED}
    chat["model"] = fields.model
    chat["messages"] = _messages(fields)
    chat["max_completion_tokens"] = fields.max_output_tokens
    if fields.tools:
        chat["tools"] = [_tool(at, tool) for at, tool in enumerate(fields.tools)]
    choice = fields.tool_choice
    if isinstance(choice, dict) and "name" in choice:
        chat["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    if form := fields.text.get("format"):
        chat["response_format"] = _format(form)
    return chat_request(encode(chat))


def _messages(fields: ResponseBody) -> list[dict[str, Any]]:
    system = {"role": "system", "content": fields.instructions}
    found = [system] if fields.instructions else []
    if isinstance(fields.input, str):
        return [*found, {"role": "user", "content": fields.input}]
    return found + [_message(f"input[{at}]", item) for at, item in enumerate(fields.input)]


def _message(param: str, item: dict[str, Any]) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        call = {"id": item.get("call_id", ""), "type": "function", "function": function}
        return {"role": "assistant", "tool_calls": [call]}
    if kind == "function_call_output":
        output = _content(f"{param}.output", item.get("output"))
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
    if kind != "message":
        raise BadField(f"{param}.type", f"{param}.type {kind!r} is not supported")
    content = _content(f"{param}.content", item.get("content"))
    return {"role": item.get("role"), "content": content}


def _content(param: str, content: Any) -> Any:
    if not isinstance(content, list):
        return content
    for at, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS:
            raise BadField(f"{param}[{at}]", f"{param}[{at}]: this model takes text only")
    return "".join(str(part.get("text", "")) for part in content)


def _tool(at: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        kind = tool.get("type")
        raise BadField(f"tools[{at}].type", f"tools[{at}].type {kind!r} is none but 'function'")
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _format(form: Any) -> Any:
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return form
    schema = {key: value for key, value in form.items() if key != "type"}
    return {"type": "json_schema", "json_schema": schema}


class ResponseAnswer:
    """Writes a response, whole or as events. Its output is a message, and calls after it."""

    written = staticmethod(named_event)

    def __init__(self, model: str, fingerprint: str, want_logprobs: bool) -> None:
        self._head = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "temperature": None,
            "top_p": None,
        }
        self._message = f"msg_{secrets.token_hex(16)}"
        self._numbers = 0
        self._text = ""
        self._begun = False
        self._calls: list[ToolCall] = []
        self._finish: str | None = None

    def whole(self, choices: Sequence[Piece], counts: dict[str, int]) -> dict[str, Any]:
        (piece,) = choices
        self._text, self._calls, self._finish = piece.text, piece.calls, piece.finish
        return self._response(counts)

    def opening(self, at: int, prompt: int) -> list[dict[str, Any]]:
        """What the stream begins with."""
        begun = self._head | {"status": "in_progress", "output": [], "incomplete_details": None}
        kinds = ("response.created", "response.in_progress")
        return [self._event(kind, response=begun) for kind in kinds]

    def chunks(self, at: int, piece: Piece) -> list[dict[str, Any]]:
        found = self._said(piece.text) if piece.text else []
        for call in piece.calls:
            found += self._called(call)
        self._finish = piece.finish or self._finish
        return found

    def closing(self, counts: dict[str, int], with_usage: bool) -> list[bytes]:
        """What the stream ends with."""
        found = self._closed() if self._begun else []
        cut = self._finish == "length"
        kind = "response.incomplete" if cut else "response.completed"
        found.append(self._event(kind, response=self._response(counts)))
        return [named_event(each) for each in found]

    def _response(self, counts: dict[str, int]) -> dict[str, Any]:
        cut = self._finish == "length"
        output = [self._whole_message()] if self._text or not self._calls else []
        return self._head | {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": output + [_call_item(call) for call in self._calls],
            "usage": {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts["total_tokens"],
            },
        }

    def _whole_message(self) -> dict[str, Any]:
        status = "incomplete" if self._finish == "length" else "completed"
        return self._item(status, [_part(self._text)])

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        said = {"type": "message", "role": "assistant", "status": status, "content": content}
        return {"id": self._message} | said

    def _said(self, text: str) -> list[dict[str, Any]]:
        place = {"item_id": self._message, "output_index": 0, "content_index": 0}
        found = []
        if not self._begun:
            self._begun = True
            item = self._item("in_progress", [])
            found.append(self._event("response.output_item.added", output_index=0, item=item))
            found.append(self._event("response.content_part.added", **place, part=_part("")))
        self._text += text
        more = {"delta": text, "logprobs": []}
        return [*found, self._event("response.output_text.delta", **place, **more)]

    def _closed(self) -> list[dict[str, Any]]:
        place = {"item_id": self._message, "output_index": 0, "content_index": 0}
        done = {"text": self._text, "logprobs": []}
        item = self._whole_message()
        return [
            self._event("response.output_text.done", **place, **done),
            self._event("response.content_part.done", **place, part=_part(self._text)),
            self._event("response.output_item.done", output_index=0, item=item),
        ]

    def _called(self, call: ToolCall) -> list[dict[str, Any]]:
        index = len(self._calls) + int(self._begun)
        self._calls.append(call)
        whole = _call_item(call)
        place = {"item_id": whole["id"], "output_index": index}
        begun = whole | {"status": "in_progress", "arguments": ""}
        kind = "response.function_call_arguments"
        done = {"name": call.name, "arguments": call.arguments}
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event(f"{kind}.delta", **place, delta=call.arguments),
            self._event(f"{kind}.done", **place, **done),
            self._event("response.output_item.done", output_index=index, item=whole),
        ]

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._numbers += 1
        return {"type": kind, "sequence_number": self._numbers - 1} | fields


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_item(call: ToolCall) -> dict[str, Any]:
    said = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
    return {"id": f"fc_{call.id}", "type": "function_call", "status": "completed"} | said
