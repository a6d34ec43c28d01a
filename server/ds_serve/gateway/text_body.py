"""What the gateway reads out of a request's body, and how it changes a field without the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import orjson

from ds_engines.errors import InvalidRequest

BYTES_PER_TOKEN = 4
"""Of English text, about; other texts and code have fewer."""

ASSUMED_TOKENS = 512
"""How long an answer is taken to become whose request does not say how long it may be."""

TOKENS_PER_PICTURE = 1024
MOST_CHOICES = 128
PREFIX_BYTES = 2048
"""What decides which replica has the start of a prompt in its cache."""

WRITES = re.compile(
    r"/(?:v1/)?(?:chat/completions|completions|responses|messages|invocations|cohere/v2/chat)/?"
)
"""Paths whose answers are written token by token."""

UNVERSIONED = frozenset(
    {"/tokenize", "/detokenize", "/score", "/rerank", "/v2/rerank", "/v2/embed", "/pooling"}
    | {"/classify", "/invocations", "/inference/v1/generate", "/generative_scoring"}
    | {"/cohere/v2/chat"}
)
"""vLLM's paths outside /v1/ whose bodies name a model."""

COUNTS = re.compile(r"/(?:v1/)?(?:tokenize|detokenize|messages/count_tokens)/?")
"""Paths that run no model."""

_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_SHALLOW = re.compile(_STRING + rb"|[{}\[\],:]", re.DOTALL)
_DEEP = re.compile(_STRING + rb"|[{}\[\]]", re.DOTALL)
_PICTURE = re.compile(rb";base64,[A-Za-z0-9+/=_-]*")
_NAME = re.compile(rb'[;\s]name="?([^";\r\n]*)"?', re.IGNORECASE)
_BOUNDARY = re.compile(rb'boundary="?([^";,\s]{1,70})"?', re.IGNORECASE)


class _Fields(msgspec.Struct):
    """A body's fields that the gateway looks at; the worker judges them all."""

    model: Any = None
    priority: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None
    cache_salt: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()


class _Message(msgspec.Struct):
    role: Any = None


class Body(NamedTuple):
    """`tokens` is what the request may have in the KV cache at most, about; 0 where it runs no
    model. `prefix` is equal for requests whose prompts begin alike. `priority`: lower is earlier.
    """

    model: str
    tokens: int = 0
    prefix: bytes = b""
    priority: int = 0
    has_priority: bool = False
    salt: str = ""


_decode = msgspec.json.Decoder(_Fields).decode
_messages = msgspec.json.Decoder(list[msgspec.Raw]).decode
_message = msgspec.json.Decoder(_Message).decode


def read_json(path: str, body: bytes) -> Body:
    """Raises InvalidRequest where it is not JSON, or names no model."""
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(_what_is_wrong(body, error)) from None
    if not isinstance(fields.model, str) or not fields.model:
        raise InvalidRequest(NEEDS_MODEL)
    given = fields.priority
    is_number = isinstance(given, int) and not isinstance(given, bool)
    return Body(
        fields.model,
        _tokens(path, fields),
        _prefix(fields),
        given if is_number else 0,
        given is not None,
        fields.cache_salt if isinstance(fields.cache_salt, str) else "",
    )


NEEDS_MODEL = "the body must be a JSON object with the model's name in 'model'"


def _what_is_wrong(body: bytes, error: Exception) -> str:
    try:
        orjson.loads(body)
    except ValueError as first:
        return f"the body is not JSON: {first}"
    return NEEDS_MODEL if isinstance(error, msgspec.ValidationError) else f"the body: {error}"


def _tokens(path: str, fields: _Fields) -> int:
    if COUNTS.fullmatch(path):
        return 0
    texts = (fields.messages, fields.prompt, fields.input, fields.instructions, fields.system)
    prompt = sum(_prompt_tokens(bytes(text)) for text in texts)
    if not WRITES.fullmatch(path):
        return max(1, prompt)
    limits = (fields.max_completion_tokens, fields.max_output_tokens, fields.max_tokens)
    given = (limit for limit in limits if isinstance(limit, int) and limit > 0)
    choices = fields.n if isinstance(fields.n, int) and 0 < fields.n <= MOST_CHOICES else 1
    return max(1, prompt + next(given, ASSUMED_TOKENS) * choices)


def _prompt_tokens(text: bytes) -> int:
    size, pictures = len(text), 0
    if b";base64," in text:
        for found in _PICTURE.finditer(text):
            size -= len(found[0])
            pictures += 1
    return size // BYTES_PER_TOKEN + pictures * TOKENS_PER_PICTURE


def _prefix(fields: _Fields) -> bytes:
    """What stays the same from one turn of a conversation to the next: all up to and with the
    first message of the user. Of other prompts their beginning.
    """
    head = bytes(fields.system or fields.instructions)
    for text in (fields.messages, fields.input):
        if bytes(text).startswith(b"["):
            return (head + _opening(bytes(text)))[:PREFIX_BYTES]
    return (head + bytes(fields.prompt or fields.input))[:PREFIX_BYTES]


def _opening(text: bytes) -> bytes:
    opening = []
    try:
        for message in _messages(text):
            opening.append(bytes(message))
            if _message(message).role == "user":
                break
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # the worker says what is wrong
    return b"".join(opening)


def read_form(content_type: bytes, body: bytes) -> Body:
    """Of multipart/form-data. Raises InvalidRequest where no part names the model."""
    span = model_part(content_type, body)
    if span is None:
        raise InvalidRequest("the form must have a part 'model' with the model's name")
    try:
        model = body[span[0] : span[1]].decode().strip()
    except UnicodeDecodeError:
        raise InvalidRequest("the form's part 'model' is not UTF-8") from None
    if not model:
        raise InvalidRequest("the form's part 'model' is empty")
    return Body(model, ASSUMED_TOKENS)


def model_part(content_type: bytes, body: bytes) -> tuple[int, int] | None:
    """Where the value of the last part named `model` begins and ends. Raises InvalidRequest."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise InvalidRequest("Content-Type multipart/form-data names no boundary")
    mark = b"--" + boundary[1]
    span = None
    at = body.find(mark)
    while at >= 0:
        head = at + len(mark)
        after = body.find(b"\r\n\r\n", head)
        at = body.find(b"\r\n" + mark, head)
        if after < 0 or (0 <= at < after):
            continue
        if at < 0:
            break
        name = _NAME.search(body, head, after)
        if name is not None and name[1] == b"model":
            span = (after + 4, at)
    return span


class _Member(NamedTuple):
    """Of a JSON object: where its name and its value begin, and where it ends."""

    name: str
    begin: int
    value: int
    end: int


def _members(body: bytes) -> Iterator[_Member]:
    found = _SHALLOW.search(body)
    if found is None or found[0] != b"{":
        raise InvalidRequest(NEEDS_MODEL)
    name, begin, value, at = "", 0, -1, found.end()
    while (found := _SHALLOW.search(body, at)) is not None:
        what, at = found[0], found.end()
        if what in (b",", b"}"):
            if value >= 0:
                yield _Member(name, begin, value, found.start())
            value = -1
            if what == b"}":
                return
        elif what == b":":
            value = at
        elif value < 0:
            name, begin = _name_of(what), found.start()
        elif what in (b"{", b"["):
            at = _over(body, at)


def _name_of(text: bytes) -> str:
    """Of a member; none that the gateway knows where it is not UTF-8."""
    try:
        return str(orjson.loads(text))
    except orjson.JSONDecodeError:
        return ""


def _over(body: bytes, at: int) -> int:
    """The end of the array or object whose first bracket ends at `at`."""
    depth = 1
    for found in _DEEP.finditer(body, at):
        what = found[0]
        if what in (b"{", b"["):
            depth += 1
        elif what in (b"}", b"]"):
            depth -= 1
            if not depth:
                return found.end()
    raise InvalidRequest("the body is not JSON: a bracket is not closed")


def with_fields(body: bytes, values: Mapping[str, object | None]) -> bytes:
    """The JSON object with these members, in place of those of the same name; None takes them out.

    The bytes of all other members stay as they are.
    """
    missing = {name: value for name, value in values.items() if value is not None}
    parts: list[bytes] = []
    for name, begin, value, end in _members(body):
        if name not in values:
            parts.append(body[begin:end])
        elif values[name] is not None:
            missing.pop(name, None)
            parts.append(body[begin:value] + orjson.dumps(values[name]))
    if missing:
        parts.insert(0, orjson.dumps(missing)[1:-1])
    return b"{%b}" % b",".join(parts)


def with_model(content_type: bytes, body: bytes, model: str) -> bytes:
    """The body, JSON or a form, with another model's name."""
    if not content_type.lower().startswith(b"multipart/form-data"):
        return with_fields(body, {"model": model})
    span = model_part(content_type, body)
    assert span is not None, "it was read before"
    return body[: span[0]] + model.encode() + body[span[1] :]
