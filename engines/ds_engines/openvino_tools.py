"""How chat models write calls of tools, by what their chat templates teach them.

A template that knows no tools gets them in the library's words, which ask for a JSON object with
`tool_calls`; Llama's JSON is read with the library's own parser.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from ds_engines.openvino_constraints import Constraint, Tag

ANY_ARGUMENTS: Mapping[str, Any] = {"type": "object", "additionalProperties": True}


class Call(NamedTuple):
    """One call that a model wants; `arguments` is the JSON text of an object."""

    name: str
    arguments: str


class Tool(msgspec.Struct, frozen=True):
    """A function that a model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False


class Style:
    """One way of writing calls. `opening` begins them, `closing` ends each, where there is one."""

    opening = ""
    closing = ""
    kept: tuple[str, ...] = ()
    """Control tokens that belong to the text of a call."""

    def constraint(self, tools: Sequence[Tool], single: bool) -> Constraint:
        """Calls of these tools and nothing else."""
        raise NotImplementedError

    def free(self, tools: Sequence[Tool], single: bool) -> Constraint | None:
        """Free text, and calls that are right wherever there are any; None where that cannot be."""
        return None

    def begins(self, text: str) -> bool:
        """Whether `text`, the answer so far, is or may yet become a call."""
        stripped = text.lstrip()
        opening = self.opening
        return stripped.startswith(opening) or opening.startswith(stripped)

    def parse(self, text: str) -> list[Call]:
        """The calls in a piece of text; none where it is something else."""
        raise NotImplementedError

    def call_id(self) -> str:
        return f"call_{secrets.token_hex(12)}"


def _call(found: Any, key: str = "arguments") -> Call | None:
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get(key, {})
    if isinstance(arguments, str):  # some write the object as a string
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if not isinstance(arguments, dict):
        return None
    return Call(found["name"], json.dumps(arguments, ensure_ascii=False))


def _all(found: Any, key: str = "arguments") -> list[Call]:
    """All of a list are calls, or there are none."""
    calls = [_call(each, key) for each in found] if isinstance(found, list) else []
    whole = [call for call in calls if call is not None]
    return whole if len(whole) == len(calls) else []


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _tags(tools: Sequence[Tool], begin: str, end: str, key: str = "arguments") -> tuple[Tag, ...]:
    """Each call spelled out but for its arguments: a model left to itself there adds blanks."""
    return tuple(
        Tag(
            f'{begin}{{"name": {json.dumps(tool.name)}, "{key}": ',
            json.dumps(tool.parameters),
            f"}}{end}",
        )
        for tool in tools
    )


class Wrapped(Style):
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Hermes and Qwen write it."""

    opening = "<tool_call>"
    closing = "</tool_call>"
    kept = ("<tool_call>", "</tool_call>")

    def _written(self, tools: Sequence[Tool]) -> tuple[Tag, ...]:
        return _tags(tools, f"{self.opening}\n", f"\n{self.closing}")

    def constraint(self, tools: Sequence[Tool], single: bool) -> Constraint:
        return Constraint("calls", tags=self._written(tools), separator="\n", single=single)

    def free(self, tools: Sequence[Tool], single: bool) -> Constraint | None:
        return Constraint("calls", tags=self._written(tools), trigger=self.opening, single=single)

    def parse(self, text: str) -> list[Call]:
        body = text.strip().removeprefix(self.opening).removesuffix(self.closing)
        return _all([_json(body)])


class Listed(Style):
    """`[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, as Mistral writes it; or, since its
    eleventh tokenizer, `[TOOL_CALLS]name[ARGS]{...}`.
    """

    opening = "[TOOL_CALLS]"
    kept = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")

    def constraint(self, tools: Sequence[Tool], single: bool) -> Constraint:
        return Constraint(
            "calls",
            before=f"{self.opening}[",
            tags=_tags(tools, "", ""),
            separator=", ",
            after="]",
            single=single,
        )

    def parse(self, text: str) -> list[Call]:
        body = text.strip().removeprefix(self.opening)
        if "[ARGS]" not in body:
            return _all(_json(body))
        pairs = [part.split("[ARGS]", 1) for part in body.split(self.opening) if part.strip()]
        if any(len(pair) < 2 for pair in pairs):
            return []
        named = [(name.partition("[CALL_ID]")[0].strip(), rest) for name, rest in pairs]
        return _all([{"name": name, "arguments": _json(rest)} for name, rest in named])

    def call_id(self) -> str:
        """Nine letters and digits, which its templates insist on."""
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class Objects(Style):
    """`{"tool_calls": [{"name": ..., "arguments": {...}}]}`, as the library asks for it where the
    template knows no tools. One call on its own is taken too: small models write it.
    """

    opening = "{"
    _HEAD = re.compile(r'^\s*(\{\s*("(tool_calls|name)"?.*)?)?$', re.DOTALL)
    _PARTIAL = re.compile(r'^\s*(\{\s*("([a-z_]*)?)?)?$')

    def constraint(self, tools: Sequence[Tool], single: bool) -> Constraint:
        return Constraint(
            "calls",
            before='{"tool_calls": [',
            tags=_tags(tools, "", ""),
            separator=", ",
            after="]}",
            single=single,
        )

    def begins(self, text: str) -> bool:
        if self._HEAD.match(text):
            return True
        partial = self._PARTIAL.match(text)
        word = partial.group(3) or "" if partial else ""
        return partial is not None and any(w.startswith(word) for w in ("tool_calls", "name"))

    def parse(self, text: str) -> list[Call]:
        found = _json(text)
        if not isinstance(found, dict):
            return []
        if "tool_calls" in found:
            return _all(found["tool_calls"])
        return _all([found]) if found.keys() == {"name", "arguments"} else []


class Llama(Style):
    """`{"name": ..., "parameters": {...}}`, one call on its own, as Llama 3 writes it."""

    opening = "{"
    kept = ("<|python_tag|>",)

    def constraint(self, tools: Sequence[Tool], single: bool) -> Constraint:
        return Constraint("calls", tags=_tags(tools, "", "", "parameters"), single=True)

    def begins(self, text: str) -> bool:
        tag, text = self.kept[0], text.lstrip()
        return tag.startswith(text) or super().begins(text.removeprefix(tag))

    def parse(self, text: str) -> list[Call]:
        import openvino_genai  # type: ignore[import-untyped] # noqa: PLC0415

        message = {"content": text.strip().removeprefix("<|python_tag|>")}
        try:
            openvino_genai.Llama3JsonToolParser().parse(message)
        except RuntimeError:  # no JSON, or JSON that is no call
            return []
        return _all(message.get("tool_calls", []), "parameters")


class Pythonic(Style):
    """`[name(key=value), ...]`, as Llama 3.2 and 4 write it."""

    opening = "["

    def constraint(self, tools: Sequence[Tool], single: bool) -> Constraint:
        """JSON as Llama 3 writes it: calls in Python's words have no schema."""
        return Llama().constraint(tools, single)

    def begins(self, text: str) -> bool:
        return super().begins(text) or text.lstrip().startswith("{")

    def parse(self, text: str) -> list[Call]:
        if text.lstrip().startswith("{"):
            return Llama().parse(text)
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return []
        nodes = tree.elts if isinstance(tree, ast.List) else []
        return _all([_python_call(node) for node in nodes])


def _python_call(node: ast.expr) -> dict[str, Any] | None:
    if not isinstance(node, ast.Call) or node.args:
        return None
    try:
        values = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
    except ValueError:
        return None
    return {"name": ast.unparse(node.func), "arguments": values}


def style_of(template: str | None) -> Style:
    """The way that a chat template teaches."""
    template = template or ""
    if "[TOOL_CALLS]" in template:
        return Listed()
    if "<tool_call>" in template and "<function=" not in template:
        return Wrapped()
    if "tools" in template and ("[func_name1(" in template or "pythonic" in template):
        return Pythonic()
    if "tools" in template and ("<|python_tag|>" in template or '"parameters"' in template):
        return Llama()
    return Objects()
