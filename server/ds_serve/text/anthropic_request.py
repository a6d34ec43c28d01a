"""`/v1/messages`: Anthropic's form of a chat, mapped onto OpenAI's. Nothing is stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ds_serve.text.answers import encode
from ds_serve.text.bodies import convert
from ds_serve.text.errors import BadField
from ds_serve.text.fields import Wanted, chat_request

MAX_STOPS = 64
"""More than OpenAI's clients may give: those of Anthropic know no such bound."""

Block = dict[str, Any]
Content = str | list[Block]

_THOUGHTS = ("thinking", "redacted_thinking")
_FUNCTION = (None, "custom")


class Turn(msgspec.Struct, forbid_unknown_fields=True):
    """One of `messages`."""

    role: Literal["user", "assistant", "system"]
    content: Content


class ToolParam(msgspec.Struct):
    """One of `tools`. What else may be said of one is for services that we are not."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ChoiceParam(msgspec.Struct, forbid_unknown_fields=True):
    """`tool_choice`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class CountBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/messages/count_tokens`. What is Any is for services that we are not."""

    model: str
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: Content = ""
    tools: list[ToolParam] = []
    tool_choice: ChoiceParam | None = None
    thinking: dict[str, Any] = {}
    output_config: dict[str, Any] = {}
    priority: int = 0
    cache_control: Any = None
    diagnostics: Any = None
    inference_geo: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None


class MessagesBody(CountBody, kw_only=True):
    """`POST /v1/messages`."""

    max_tokens: Annotated[int, Meta(ge=1)]
    stop_sequences: list[str] = []
    stream: bool = False
    temperature: Annotated[float, Meta(ge=0, le=1)] = 1.0
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] = 0


def messages_request(body: bytes) -> Wanted:
    """Check a request. Raises InvalidRequest; BadField where a field is at fault."""
    fields = convert(body, MessagesBody)
    own = ("max_tokens", "stream", "temperature", "top_p", "top_k")
    wanted = _wanted(fields, {name: getattr(fields, name) for name in own})
    return msgspec.structs.replace(wanted, stops=_stops(fields.stop_sequences))


def count_request(body: bytes) -> Wanted:
    """The same for one that only asks how long its prompt is."""
    return _wanted(convert(body, CountBody), {})


def _wanted(fields: CountBody, more: dict[str, Any]) -> Wanted:
    if fields.thinking.get("type", "disabled") != "disabled":
        raise BadField("thinking", "thinking is not supported by this model")
    turns, begun = _split(fields.messages)
    chat = {"model": fields.model, "priority": fields.priority} | more
    chat["messages"] = _system(fields.system) + [
        message for at, turn in enumerate(turns) for message in _messages(f"messages[{at}]", turn)
    ]
    if fields.tools:
        chat["tools"] = [_tool(f"tools[{at}]", tool) for at, tool in enumerate(fields.tools)]
    if fields.tool_choice is not None:
        chat["tool_choice"] = _choice(fields.tool_choice)
        chat["parallel_tool_calls"] = not fields.tool_choice.disable_parallel_tool_use
    if form := fields.output_config.get("format"):
        chat["response_format"] = _format(form)
    return msgspec.structs.replace(chat_request(encode(chat)), begun=begun)


def _stops(stops: list[str]) -> tuple[str, ...]:
    if len(stops) > MAX_STOPS or "" in stops:
        what = f"has {len(stops)}" if len(stops) > MAX_STOPS else "has an empty one"
        raise BadField("stop_sequences", f"stop_sequences takes {MAX_STOPS} texts and {what}")
    return tuple(stops)


def _split(turns: list[Turn]) -> tuple[list[Turn], str]:
    """The turns, and what the assistant has said of its answer where it has the last one."""
    last = turns[-1]
    if last.role != "assistant":
        return turns, ""
    param = f"messages[{len(turns) - 1}]"
    begun = _texts(param, _spoken(param, last.content))
    if not begun or begun != begun.rstrip():
        fault = "ends with blanks" if begun else "is empty"
        raise BadField(param, f"{param} begins the answer, and {fault}")
    if len(turns) == 1:
        raise BadField("messages", "messages has nothing that the assistant could answer")
    return turns[:-1], begun


def _system(content: Content) -> list[Block]:
    text = _texts("system", content)
    return [{"role": "system", "content": text}] if text else []


def _messages(param: str, turn: Turn) -> list[dict[str, Any]]:
    """One turn as OpenAI has it: what tools gave is said by the tools."""
    blocks = turn.content
    if isinstance(blocks, str):
        return [{"role": turn.role, "content": blocks}]
    if turn.role == "assistant":
        return [_assistant(param, blocks)]
    results = [
        _result(f"{param}.content[{at}]", block)
        for at, block in enumerate(blocks)
        if block.get("type") == "tool_result"
    ]
    rest = [block for block in blocks if block.get("type") != "tool_result"]
    said = [{"role": turn.role, "content": _texts(param, rest)}] if rest or not results else []
    return [*results, *said]


def _assistant(param: str, blocks: list[Block]) -> dict[str, Any]:
    calls = [block for block in blocks if block.get("type") == "tool_use"]
    rest = [block for block in blocks if block.get("type") != "tool_use"]
    message: dict[str, Any] = {"role": "assistant", "content": _texts(param, _spoken(param, rest))}
    if calls:
        message["tool_calls"] = [_call(param, block) for block in calls]
    return message


def _spoken(param: str, content: Content) -> Content:
    """Without thoughts, which templates leave out of earlier turns too."""
    if isinstance(content, str):
        return content
    return [block for block in content if block.get("type") not in _THOUGHTS]


def _call(param: str, block: Block) -> dict[str, Any]:
    if not isinstance(block.get("name"), str) or not isinstance(block.get("input", {}), dict):
        raise BadField(param, f"{param} has a tool_use without a name and an object as its input")
    arguments = encode(block.get("input", {})).decode()
    function = {"name": block["name"], "arguments": arguments}
    return {"id": str(block.get("id", "")), "type": "function", "function": function}


def _result(param: str, block: Block) -> dict[str, Any]:
    called = block.get("tool_use_id")
    if not isinstance(called, str):
        raise BadField(f"{param}.tool_use_id", f"{param}.tool_use_id is required")
    text = _texts(param, block.get("content") or "")
    return {"role": "tool", "tool_call_id": called, "content": text}


def _texts(param: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadField(param, f"{param}.content is neither text nor blocks: {content!r:.80}")
    return "".join(_text(f"{param}.content[{at}]", block) for at, block in enumerate(content))


def _text(param: str, block: Any) -> str:
    """Of a text, or of a document that is one."""
    kind = block.get("type") if isinstance(block, dict) else None
    text = block.get("text") if kind == "text" else None
    source = block.get("source") if kind == "document" else None
    if isinstance(source, dict) and source.get("type") == "text":
        text = source.get("data")
    if not isinstance(text, str):
        raise BadField(param, f"{param} is of type {kind!r}; this model takes text only")
    return text


def _tool(param: str, tool: ToolParam) -> dict[str, Any]:
    if tool.type not in _FUNCTION:
        raise BadField(
            f"{param}.type", f"{param}.type is {tool.type!r}, a tool that this server does not run"
        )
    if tool.input_schema is None:
        raise BadField(f"{param}.input_schema", f"{param}.input_schema is required")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _choice(choice: ChoiceParam) -> Any:
    if choice.type != "tool":
        return {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if choice.name is None:
        raise BadField("tool_choice.name", "tool_choice.name is required where its type is tool")
    return {"type": "function", "function": {"name": choice.name}}


def _format(form: Any) -> Any:
    if not isinstance(form, dict) or form.get("type") != "json_schema" or "schema" not in form:
        raise BadField(
            "output_config.format",
            "output_config.format must be of type json_schema, with a schema",
        )
    schema = {"name": "answer", "schema": form["schema"]}
    return {"type": "json_schema", "json_schema": schema}
