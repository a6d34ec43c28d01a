"""Tool calling: what a request may say of tools, and calls read out of the answer as it comes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from ds_engines.openvino_constraints import Constraint
from ds_engines.openvino_tools import ANY_ARGUMENTS, Call, Style, Tool
from ds_serve.text.errors import BadField
from ds_serve.text.text_stream import Piece, ToolCall, overlap

MAX_TOOLS = 128
_NAME = re.compile(r"^[A-Za-z0-9_.-]{1,128}$")


class Function(msgspec.Struct, forbid_unknown_fields=True):
    """`tools[].function`."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolField(msgspec.Struct, forbid_unknown_fields=True):
    """One of `tools`."""

    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    """`tool_choice.function`."""

    name: str


class NamedChoice(msgspec.Struct, forbid_unknown_fields=True):
    """`tool_choice`, one function by its name."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedChoice


class ToolsWanted(msgspec.Struct, frozen=True):
    """The tools of a request. `forced`: the answer is calls and nothing else.

    `shown` are the tools as the template gets them, `callable_` those that may be called.
    """

    shown: tuple[Mapping[str, Any], ...]
    callable_: tuple[Tool, ...]
    forced: bool
    parallel: bool

    def constraint(self, style: Style) -> Constraint | None:
        """What the answer is held to, in the model's way of writing calls."""
        if self.forced:
            return style.constraint(self.callable_, not self.parallel)
        if any(tool.strict for tool in self.callable_):
            return style.free(self.callable_, not self.parallel)
        return None


def tools_wanted(
    tools: Sequence[ToolField], choice: ToolChoice | None, parallel: bool
) -> ToolsWanted | None:
    """The tools that the model may call, None where it may call none. Raises BadField."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise BadField("tool_choice", "tool_choice asks for a call, and tools has none")
        return None
    found = _checked(tools)
    if choice == "none":
        return None
    if isinstance(choice, NamedChoice):
        name = choice.function.name
        if name not in found:
            raise BadField(
                "tool_choice", f"tool_choice names {name!r}; tools has {', '.join(found)}"
            )
        found = {name: found[name]}
    forced = choice == "required" or isinstance(choice, NamedChoice)
    single = isinstance(choice, NamedChoice) or not parallel
    shown = tuple(_shown(tool) for tool in tools)
    return ToolsWanted(shown, tuple(found.values()), forced, not single)


def _checked(tools: Sequence[ToolField]) -> dict[str, Tool]:
    if len(tools) > MAX_TOOLS:
        raise BadField("tools", f"tools has {len(tools)} functions; at most {MAX_TOOLS} are taken")
    found: dict[str, Tool] = {}
    for at, tool in enumerate(tools):
        name = tool.function.name
        if not _NAME.match(name):
            raise BadField(
                f"tools[{at}].function.name",
                f"tools[{at}].function.name {name!r:.80} is not of 1 to 128 letters, digits, "
                "'_', '-' and '.'",
            )
        if name in found:
            raise BadField("tools", f"tools has two functions named {name!r}")
        strict = bool(tool.function.strict)
        found[name] = Tool(name, tool.function.parameters or ANY_ARGUMENTS, strict)
    return found


def _shown(tool: ToolField) -> Mapping[str, Any]:
    function: dict[str, Any] = {"name": tool.function.name}
    if tool.function.description is not None:
        function["description"] = tool.function.description
    function["parameters"] = tool.function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


class CallReader:
    """Takes one choice's text in and gives it out again, less the calls that are in it."""

    def __init__(self, style: Style, parallel: bool) -> None:
        self._style = style
        self._parallel = parallel
        self._held = ""
        self._passed = False
        self._calls = 0

    def feed(self, piece: Piece) -> Piece:
        """The piece with its text sorted; one with calls ends as "tool_calls" where it ends."""
        self._held += piece.text
        last = piece.finish is not None
        reading = self._wrapped if self._style.closing else self._whole
        piece.text, calls = reading(last)
        for call in calls:
            if self._calls and not self._parallel:
                break
            piece.calls.append(ToolCall(self._calls, self._style.call_id(), *call))
            self._calls += 1
        if self._calls and piece.finish == "stop":
            piece.finish = "tool_calls"
        return piece

    def _whole(self, last: bool) -> tuple[str, list[Call]]:
        """Calls that are an answer of their own: known by how it begins, read at its end."""
        if self._passed or not self._style.begins(self._held):
            self._passed = True
            return self._release(), []
        if not last:
            return "", []
        calls = self._style.parse(self._held)
        return ("", calls) if calls else (self._release(), [])

    def _wrapped(self, last: bool) -> tuple[str, list[Call]]:
        """Calls between an opening and a closing, among other text."""
        text, calls = "", []
        while (found := self._next()) is not None:
            before, body = found
            read = self._style.parse(body)
            text += before if read else before + body
            calls += read
        opening = self._style.opening
        at = self._held.find(opening)
        if at < 0:
            at = len(self._held) - overlap(self._held, opening)
        text, self._held = text + self._held[:at], self._held[at:]
        if last:
            text += self._release()
        # Blanks between calls are the convention's, not the answer's.
        if self._calls or calls:
            text = text if text.strip() else ""
        return text, calls

    def _next(self) -> tuple[str, str] | None:
        begin = self._held.find(self._style.opening)
        end = self._held.find(self._style.closing, begin) if begin >= 0 else -1
        if end < 0:
            return None
        end += len(self._style.closing)
        found = self._held[:begin], self._held[begin:end]
        self._held = self._held[end:]
        return found

    def _release(self) -> str:
        held, self._held = self._held, ""
        return held
