"""The bodies of OpenAI's requests, field by field, with what vLLM's server adds."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from ds_engines.errors import InvalidRequest
from ds_serve.text.conversation import Message
from ds_serve.text.errors import BadField
from ds_serve.text.formats import ResponseFormat, StructuredOutputs
from ds_serve.text.tools import ToolChoice, ToolField

MAX_CHOICES = 128

# Fields that change nothing here: bookkeeping, and hints for services that we are not.
HARMLESS = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "request_id"}
    | {"prompt_cache_key", "prompt_cache_retention", "verbosity"}
)
# Fields not offered, with the values at which they ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "use_beam_search": (False,),
    "prompt_logprobs": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
}

_ALLOWED = {
    "encoding_format": "float, base64",
    "truncation_side": "left, right",
    "role": "system, developer, user, assistant, tool",
    "type": "text, json_object, json_schema; function for a tool",
    "tool_choice": 'none, auto, required, {"type": "function", "function": {"name": ...}}',
}

Stop = str | list[str]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream carries beside the text."""

    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False
    include_obfuscation: bool = False


class Common(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields that both kinds of request have."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1)] = 0
    min_p: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1
    stop: Stop = []
    stop_token_ids: list[Annotated[int, Meta(ge=0)]] = []
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    echo: bool = False
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] = 0
    cache_salt: str | None = None


class ChatBody(Common, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] = 0
    tools: list[ToolField] = []
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] = {}
    add_generation_prompt: bool = True


class CompletionBody(Common, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[Any]
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None


class TokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /tokenize`: either a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    tools: list[ToolField] = []
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] = {}


class DetokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[Annotated[int, Meta(ge=0)]]


Body = TypeVar("Body", bound=msgspec.Struct)


def convert(body: bytes, kind: type[Body]) -> Body:
    """The body as `kind`. Raises InvalidRequest; BadField where a field is at fault."""
    fields = _fields(body)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _named(error, fields) from error


def _fields(body: bytes) -> dict[str, Any]:
    """The body's fields, less those that are null or ask for nothing."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {fields!r:.80}")
    found = {
        key: value
        for key, value in fields.items()
        if value is not None and key not in HARMLESS and not _neutral(key, value)
    }
    if isinstance(found.get("messages"), list):
        found["messages"] = [_without_nulls(message) for message in found["messages"]]
    return found


def _without_nulls(message: Any) -> Any:
    """A client that sends an answer back as it got it has nulls in it."""
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if value is not None}


def _neutral(key: str, value: Any) -> bool:
    if key not in NEUTRAL:
        return False
    if value in NEUTRAL[key]:
        return True
    raise BadField(key, f"{key} is not supported by this model", "unsupported_parameter")


def _named(error: msgspec.ValidationError, fields: dict[str, Any]) -> BadField:
    """The validation error, with the field it is about and the value it had."""
    message = str(error)
    path = re.search(r" - at `\$\.?(.*)`$", message)
    param = path.group(1) if path else ""
    unknown = re.search(r"unknown field `(.+?)`", message)
    missing = re.search(r"missing required field `(.+?)`", message)
    found = unknown or missing
    if found is not None:
        param = f"{param}.{found.group(1)}" if param else found.group(1)
        if missing:
            return BadField(param, f"{param} is required", "missing_required_parameter")
        return BadField(param, f"{param} is not a field that this model knows", "unknown_parameter")
    what = message[: path.start()] if path else message
    what = what[:1].lower() + what[1:]
    if "enum value" in what:
        what += f"; allowed are {_ALLOWED.get(param.rpartition('.')[2], 'others')}"
    elif param in fields and "got" not in what:
        what += f", got {fields[param]!r:.80}"
    return BadField(param, f"{param}: {what}")
