"""JSON schemas as the library's grammar compiler takes them.

Some it reads wrongly, and some keywords it passes over: the first are spelled otherwise, the
second refused. And the smallest model that can be loaded, to try constraints with.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ds_engines.errors import InvalidRequest

MAX_BYTES = 64 << 10
MAX_DEPTH = 48
MAX_REPEATS = 1 << 16

# The compiler passes over these, so an answer might break them.
_IGNORED = frozenset(
    {"not", "if", "then", "else", "dependentRequired", "dependentSchemas", "uniqueItems"}
    | {"contains", "minContains", "maxContains", "multipleOf"}
    | {"unevaluatedProperties", "unevaluatedItems"}
)
# The compiler writes U+007F to U+00FF as \\xHH and reads on while hexadecimal digits follow.
_MISREAD = re.compile("[\x7f-\xff][0-9a-fA-F]")
_MISREAD_CLASS = re.compile(r"\[[^\]]*[\x7f-\xff][0-9a-fA-F]")
_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f]')
_REPEATS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems", "propertyNames")


def prepare_schema(schema: str) -> str:
    """The schema with its constants spelled so that the library reads them right.

    Raises InvalidRequest for a schema too large, or with something that is not enforced.
    """
    if len(schema) > MAX_BYTES:
        raise InvalidRequest(f"the JSON schema has {len(schema)} characters, over {MAX_BYTES}")
    try:
        tree = msgspec.json.decode(schema)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"the JSON schema is not JSON: {error}") from error
    _prepare(tree, 0)
    return msgspec.json.encode(tree).decode()


def _prepare(node: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"the JSON schema is nested deeper than {MAX_DEPTH} levels")
    if isinstance(node, bool):
        return
    if not isinstance(node, dict):
        raise InvalidRequest(f"the JSON schema has {node!r} where a schema belongs")
    unenforced = _IGNORED & node.keys()
    if unenforced:
        raise InvalidRequest(f"the JSON schema uses {min(unenforced)!r}, which is not enforced")
    if isinstance(node.get("allOf"), list) and len(node["allOf"]) > 1:
        raise InvalidRequest("the JSON schema uses 'allOf' with several schemas: not enforced")
    _check_repeats(node)
    _check_spelling(node)
    for child in _children(node):
        _prepare(child, depth + 1)
    _respell(node)


def _check_spelling(node: dict[str, Any]) -> None:
    properties = node.get("properties")
    for name in properties if isinstance(properties, dict) else ():
        if _MISREAD.search(name):
            raise InvalidRequest(f"the JSON schema's property name {name!r} cannot be enforced")
    pattern = node.get("pattern")
    if isinstance(pattern, str) and _MISREAD_CLASS.search(pattern):
        raise InvalidRequest(
            f"the JSON schema's pattern {pattern!r:.80} cannot be enforced: in brackets, put "
            "letters a to f and digits before accented ones"
        )


def _respell(node: dict[str, Any]) -> None:
    """Turn constants that the library would misread into patterns, which it reads right."""
    values = [node["const"]] if "const" in node else node.get("enum")
    if not isinstance(values, list):
        return
    texts = [value for value in values if _misread(value)]
    if not texts:
        return
    others = [value for value in values if not _misread(value)]
    node.clear()
    node["anyOf"] = [{"type": "string", "pattern": _pattern(text)} for text in texts]
    if others:
        node["anyOf"].append({"enum": others})


def _misread(value: Any) -> bool:
    """Whether the library would get a constant wrong; refuses one that has no other spelling."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if not _MISREAD.search(text):
        return False
    if not isinstance(value, str) or _ESCAPED.search(text):
        raise InvalidRequest(f"the JSON schema's constant {value!r:.80} cannot be enforced")
    return True


def _pattern(text: str) -> str:
    """A regular expression for exactly this text, its misread characters in brackets."""
    parts = [f"[{c}]" if ord(c) > 0x7E else re.escape(c) for c in text]
    return f"^{''.join(parts)}$"


def _check_repeats(node: dict[str, Any]) -> None:
    for key in _REPEATS:
        value = node.get(key, 0)
        if isinstance(value, int) and value > MAX_REPEATS:
            raise InvalidRequest(f"the JSON schema's {key} {value} is over {MAX_REPEATS}")


def _children(node: dict[str, Any]) -> Iterator[Any]:
    for key in _NAMED:
        if isinstance(node.get(key), dict):
            yield from node[key].values()
    for key in _LISTED:
        if isinstance(node.get(key), list):
            yield from node[key]
    for key in _SINGLE:
        if key in node:
            yield node[key]


def write_empty_model(path: Path, vocabulary: int, width: int = 64) -> None:
    """Write a Llama of one layer whose weights are all zero, as a sparse GGUF file."""
    tensors = _tensors(vocabulary, width)
    pairs = [_text("general.architecture", "llama"), _number("general.file_type", 0)]
    for key in ("embedding_length", "feed_forward_length", "context_length"):
        pairs.append(_number(f"llama.{key}", width))
    for key in ("block_count", "attention.head_count", "attention.head_count_kv"):
        pairs.append(_number(f"llama.{key}", 1))
    pairs.append(_string("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5))
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs)) + b"".join(pairs)
    at = 0
    for name, shape in tensors.items():
        head += _tensor(name, shape, at)
        at += _aligned(int(np.prod(shape)) * (4 if len(shape) == 1 else 2))
    with path.open("wb") as file:
        file.write(head)
        file.truncate(_aligned(len(head)) + at)


def _tensors(vocabulary: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (width, vocabulary)}
    shapes["output_norm.weight"] = (width,)
    for name in ("attn_norm", "ffn_norm"):
        shapes[f"blk.0.{name}.weight"] = (width,)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{name}.weight"] = (width, width)
    return shapes


def _aligned(size: int) -> int:
    return -(-size // 32) * 32


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _text(key: str, value: str) -> bytes:
    return _string(key) + struct.pack("<I", 8) + _string(value)


def _number(key: str, value: int) -> bytes:
    return _string(key) + struct.pack("<II", 4, value)


def _tensor(name: str, shape: tuple[int, ...], at: int) -> bytes:
    kind = 0 if len(shape) == 1 else 1  # norms in F32, matrices in F16
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return _string(name) + sizes + struct.pack("<IQ", kind, at)
