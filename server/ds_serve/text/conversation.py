"""The messages of a chat, checked and made into what a chat template reads."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec

from ds_serve.text.errors import BadField

Content = str | list[dict[str, Any]]


class FunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    """`messages[].tool_calls[].function`; `arguments` is the JSON text of an object."""

    name: str
    arguments: str = "{}"


class MessageCall(msgspec.Struct):
    """A call that the assistant made."""

    function: FunctionCall
    id: str = ""
    type: Literal["function"] = "function"


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One turn of a chat. Fields of an answer that say nothing to a template are taken too."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[MessageCall] = []
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: list[Any] = []
    reasoning: str | None = None
    reasoning_content: str | None = None


def rendered(messages: list[Message]) -> tuple[dict[str, Any], ...]:
    """The messages as a template reads them, arguments of calls as objects. Raises BadField."""
    return tuple(_message(f"messages[{at}]", message) for at, message in enumerate(messages))


def _message(param: str, message: Message) -> dict[str, Any]:
    if message.tool_calls and message.role != "assistant":
        raise BadField(f"{param}.tool_calls", f"{param}.tool_calls: only an assistant has them")
    if message.content is None and not message.tool_calls:
        raise BadField(f"{param}.content", f"{param} has no content")
    role = "system" if message.role == "developer" else message.role
    found: dict[str, Any] = {"role": role, "content": _text(f"{param}.content", message.content)}
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        found["tool_calls"] = [_call(f"{param}.tool_calls[{at}]", call) for at, call in calls]
    if role == "tool":
        if message.tool_call_id is None:
            raise BadField(
                f"{param}.tool_call_id", f"{param}.tool_call_id is required where role is tool"
            )
        found["tool_call_id"] = message.tool_call_id
        if message.name:
            found["name"] = message.name
    return found


def _call(param: str, call: MessageCall) -> dict[str, Any]:
    param += ".function.arguments"
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except ValueError as error:
        raise BadField(param, f"{param} is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise BadField(param, f"{param} must be a JSON object, not {arguments!r:.80}")
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _text(param: str, content: Content | None) -> str:
    if isinstance(content, list):
        return "".join(_part(f"{param}[{at}]", part) for at, part in enumerate(content))
    return content or ""


def _part(param: str, part: dict[str, Any]) -> str:
    kind, text = part.get("type"), part.get("text")
    if kind != "text":
        raise BadField(
            param, f"{param} is of type {kind!r}; this model takes text only", "unsupported_value"
        )
    if not isinstance(text, str):
        raise BadField(param, f"{param}.text must be a string, not {text!r:.80}")
    return text
