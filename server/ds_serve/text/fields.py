"""The bodies of OpenAI's requests, checked once into `Wanted`; every refusal names its field."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from ds_engines.errors import InvalidRequest
from ds_engines.openvino_genai import Sampling
from ds_serve.text.errors import BadField

MAX_CHOICES = 128
MAX_STOPS = 4
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
ANY_OBJECT = '{"type":"object"}'

# Fields that change nothing here: bookkeeping, and hints for services that we are not.
HARMLESS = frozenset(
    {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"}
    | {"prompt_cache_key", "prompt_cache_retention", "verbosity"}
)
# Fields not offered, with the values at which they ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
}

_ALLOWED = {
    "role": "system, developer, user, assistant",
    "type": "text, json_object, json_schema",
}

Stop = str | list[str]
Content = str | list[dict[str, Any]]


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    name: str | None = None


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    """`response_format.json_schema`."""

    name: str
    schema: dict[str, Any] | bool
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream carries beside the text."""

    include_usage: bool = False
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
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None


class ChatBody(Common, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] = 0


class CompletionBody(Common, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[Any]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None


Body = TypeVar("Body", bound=Common)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A request that passed every check that needs no tokenizer.

    `max_tokens` None is all that the context leaves. Either `messages` or `prompts` is set.
    """

    chat: bool
    model: str
    stream: bool
    include_usage: bool
    n: int
    stops: tuple[str, ...]
    max_tokens: int | None
    max_tokens_field: str
    logprobs: bool
    sampling: Sampling
    messages: tuple[dict[str, str], ...] = ()
    prompts: tuple[str | list[int], ...] = ()


def chat_request(body: bytes) -> Wanted:
    """Check a chat request. Raises InvalidRequest; BadField where a field is at fault."""
    fields = _convert(body, ChatBody)
    if fields.top_logprobs > 0:
        raise _unsupported("top_logprobs", fields.top_logprobs, "0")
    if fields.max_tokens and fields.max_completion_tokens:
        raise BadField("max_tokens", "give max_tokens or max_completion_tokens, not both")
    field = "max_completion_tokens" if fields.max_completion_tokens else "max_tokens"
    limit = fields.max_completion_tokens or fields.max_tokens
    messages = tuple(_message(at, message) for at, message in enumerate(fields.messages))
    return _wanted(fields, True, limit, field, fields.logprobs, messages=messages)


def completion_request(body: bytes) -> Wanted:
    """Check a completion request. Raises as `chat_request` does."""
    fields = _convert(body, CompletionBody)
    if fields.logprobs is not None and fields.logprobs > 1:
        raise _unsupported("logprobs", fields.logprobs, "0 and 1")
    limit = fields.max_tokens or COMPLETION_TOKENS
    prompts = _prompts(fields.prompt)
    if len(prompts) * fields.n > MAX_CHOICES:
        raise BadField("n", f"{len(prompts)} prompts times n {fields.n} is over {MAX_CHOICES}")
    logprobs = fields.logprobs is not None
    return _wanted(fields, False, limit, "max_tokens", logprobs, prompts=prompts)


def _wanted(
    fields: Common, chat: bool, limit: int | None, field: str, logprobs: bool, **prompt: Any
) -> Wanted:
    if fields.stream_options is not None and not fields.stream:
        raise BadField("stream_options", "stream_options is only allowed with stream true")
    if limit is not None and fields.min_tokens > limit:
        raise BadField("min_tokens", f"min_tokens {fields.min_tokens} is over {field} {limit}")
    return Wanted(
        chat=chat,
        model=fields.model,
        stream=fields.stream,
        include_usage=fields.stream_options is not None and fields.stream_options.include_usage,
        n=fields.n,
        stops=_stops(fields.stop),
        max_tokens=limit,
        max_tokens_field=field,
        logprobs=logprobs,
        sampling=_sampling(fields, logprobs),
        **prompt,
    )


def _sampling(fields: Common, logprobs: bool) -> Sampling:
    greedy = fields.temperature == 0 or fields.top_p == 0
    return Sampling(
        max_tokens=0,
        temperature=0.0 if greedy else fields.temperature,
        top_p=1.0 if greedy else fields.top_p,
        top_k=max(fields.top_k, 0),
        min_p=fields.min_p,
        seed=(secrets.randbits(63) if fields.seed is None else fields.seed) & (2**63 - 1),
        frequency_penalty=fields.frequency_penalty,
        presence_penalty=fields.presence_penalty,
        repetition_penalty=fields.repetition_penalty,
        logprobs=logprobs,
        ignore_eos=fields.ignore_eos,
        min_tokens=fields.min_tokens,
        schema=_schema(fields.response_format),
    )


def _schema(wanted: ResponseFormat | None) -> str | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ANY_OBJECT
    if wanted.json_schema is None:
        raise BadField("response_format", "response_format json_schema needs a json_schema")
    # The order of properties is the answer's: a decoded object keeps it.
    return msgspec.json.encode(wanted.json_schema.schema).decode()


def _stops(stop: Stop) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS:
        raise BadField("stop", f"stop has {len(stops)} strings; at most {MAX_STOPS} are allowed")
    if "" in stops:
        raise BadField("stop", "stop has an empty string")
    return stops


def _prompts(prompt: str | list[Any]) -> tuple[str | list[int], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not prompt:
        raise BadField("prompt", "prompt is an empty list")
    if _is_ids(prompt):
        return (prompt,)
    for at, item in enumerate(prompt):
        if not isinstance(item, str) and not _is_ids(item):
            raise BadField(
                f"prompt[{at}]", f"prompt[{at}] is neither text nor token ids: {item!r:.80}"
            )
    return tuple(prompt)


def _is_ids(item: Any) -> bool:
    return isinstance(item, list) and item != [] and all(type(number) is int for number in item)


def _message(at: int, message: Message) -> dict[str, str]:
    if message.content is None:
        raise BadField(f"messages[{at}].content", f"messages[{at}] has no content")
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": _text(f"messages[{at}].content", message.content)}


def _text(param: str, content: Content) -> str:
    if isinstance(content, str):
        return content
    return "".join(_part(f"{param}[{at}]", part) for at, part in enumerate(content))


def _part(param: str, part: dict[str, Any]) -> str:
    kind, text = part.get("type"), part.get("text")
    if kind != "text":
        raise BadField(
            param, f"{param} is of type {kind!r}; this model takes text only", "unsupported_value"
        )
    if not isinstance(text, str):
        raise BadField(param, f"{param}.text must be a string, not {text!r:.80}")
    return text


def _convert(body: bytes, kind: type[Body]) -> Body:
    fields = _fields(body)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _named(error, fields, kind) from error


def _fields(body: bytes) -> dict[str, Any]:
    """The body's fields, less those that are null or ask for nothing."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {fields!r:.80}")
    return {
        key: value
        for key, value in fields.items()
        if value is not None and key not in HARMLESS and not _neutral(key, value)
    }


def _neutral(key: str, value: Any) -> bool:
    if key not in NEUTRAL:
        return False
    if value in NEUTRAL[key]:
        return True
    raise BadField(key, f"{key} is not supported by this model", "unsupported_parameter")


def _named(error: msgspec.ValidationError, fields: dict[str, Any], kind: type) -> BadField:
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


def _unsupported(param: str, value: object, offered: str) -> BadField:
    message = f"{param} {value} is not supported: this engine offers {offered} only"
    return BadField(param, message, "unsupported_value")
