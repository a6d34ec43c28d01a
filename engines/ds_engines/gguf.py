"""The metadata of a GGUF file, read without loading its tensors.

The format is described in ggml's `docs/gguf.md`: a magic number, a version, two counts, then
typed key-value pairs, all little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import msgspec

from ds_engines.errors import LoadError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_PAIRS = 1 << 16
MAX_STRING = 1 << 26
MAX_ARRAY = 1 << 26
MAX_TENSORS = 1 << 20
ALIGNMENT = 32

# Value types 0 to 7 and 10 to 12 are fixed-size numbers.
_NUMBERS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_COUNT = struct.Struct("<Q")

# `general.file_type`, as llama.cpp numbers it.
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    32: "BF16",
}

# ggml's tensor types: elements in a block and the block's bytes. Types not here go unchecked.
_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    30: (1, 2),
}


class GgufInfo(msgspec.Struct, frozen=True):
    """What the header of a GGUF file says; None or 0 where it says nothing.

    `token_types` has one number for each token: 3 is a control token, 4 a user-defined one.
    """

    name: str
    architecture: str
    context_length: int
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    add_bos: bool = False
    chat_template: str | None = None
    quantization: str | None = None
    tokenizer: str | None = None
    layers: int = 0
    heads_kv: int = 0
    head_size: int = 0
    vocabulary: tuple[str, ...] = ()
    token_types: tuple[int, ...] = ()

    def control_tokens(self) -> dict[str, int]:
        """The tokens that steer a chat and are never text, by their spelling."""
        pairs = zip(self.vocabulary, self.token_types, strict=False)
        return {token: i for i, (token, kind) in enumerate(pairs) if kind == 3}


class _Reader:
    """A cursor over the file's bytes; every step checks that the bytes are there."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self.at = 0

    def number(self, kind: struct.Struct) -> Any:
        end = self.at + kind.size
        if end > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, inside its header")
        (value,) = kind.unpack_from(self.data, self.at)
        self.at = end
        return value

    def count(self, limit: int, what: str) -> int:
        value = int(self.number(_COUNT))
        if value > limit:
            raise ValueError(f"its {what} of {value} at byte {self.at - 8} is beyond {limit}")
        return value

    def string(self) -> str:
        size = self.count(MAX_STRING, "string length")
        end = self.at + size
        if end > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, inside its header")
        raw = self.data[self.at : end]
        self.at = end
        return raw.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        raise ValueError(f"it has a value of unknown type {kind} at byte {self.at}")

    def array(self) -> tuple[Any, ...]:
        kind = int(self.number(_NUMBERS[4]))
        size = self.count(MAX_ARRAY, "array length")
        if kind in _NUMBERS:
            return self.numbers(_NUMBERS[kind], size)
        if kind != _STRING:
            raise ValueError(f"it has an array of type {kind} at byte {self.at}")
        return tuple(self.string() for _ in range(size))

    def numbers(self, kind: struct.Struct, size: int) -> tuple[Any, ...]:
        end = self.at + kind.size * size
        if end > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data)}, inside its header")
        values = struct.unpack_from(f"<{size}{kind.format[-1]}", self.data, self.at)
        self.at = end
        return values


def read_metadata(path: Path) -> GgufInfo:
    """The metadata of the GGUF file at `path`.

    Raises LoadError where the file is missing, not GGUF, truncated or without an architecture.
    """
    return _info(path, read_pairs(path))


def read_pairs(path: Path) -> dict[str, Any]:
    """All key-value pairs of the file's header, arrays as tuples. Raises LoadError as above,
    whatever its architecture.
    """
    try:
        with path.open("rb") as file:
            return _pairs(path, file.fileno())
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise LoadError(f"{path} is a damaged GGUF file: {error}") from error


def _pairs(path: Path, fileno: int) -> dict[str, Any]:
    if path.stat().st_size < len(MAGIC):
        raise LoadError(f"{path} is not a GGUF file: it has {path.stat().st_size} bytes")
    with mmap.mmap(fileno, 0, access=mmap.ACCESS_READ) as data:
        return _read_pairs(path, _Reader(data))


def _read_pairs(path: Path, reader: _Reader) -> dict[str, Any]:
    magic = bytes(reader.data[: len(MAGIC)])
    if magic != MAGIC:
        raise LoadError(f"{path} is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
    reader.at = len(MAGIC)
    version = reader.number(_NUMBERS[4])
    if version not in VERSIONS:
        raise LoadError(f"{path} is GGUF version {version}; versions 2 and 3 are supported")
    tensors = reader.count(MAX_TENSORS, "count of tensors")
    size = reader.count(MAX_PAIRS, "count of metadata pairs")
    pairs = {}
    for _ in range(size):
        key = reader.string()
        pairs[key] = reader.value(int(reader.number(_NUMBERS[4])))
    _check_tensors(reader, tensors, _integer(pairs, "general.alignment") or ALIGNMENT)
    return pairs


def _check_tensors(reader: _Reader, count: int, alignment: int) -> None:
    """Raise ValueError where a tensor lies beyond the file: libraries crash on such a file."""
    ends = [_tensor_end(reader) for _ in range(count)]
    start = -(-reader.at // alignment) * alignment
    needed = start + max(ends, default=0)
    if needed > len(reader.data):
        raise ValueError(f"it has {len(reader.data)} bytes, and its tensors need {needed}")


def _tensor_end(reader: _Reader) -> int:
    """Where a tensor's data ends, counted from where all data begins."""
    reader.string()
    dimensions = int(reader.number(_NUMBERS[4]))
    if dimensions > 8:
        raise ValueError(f"it has a tensor of {dimensions} dimensions at byte {reader.at}")
    elements = math.prod(int(reader.number(_COUNT)) for _ in range(dimensions))
    kind = int(reader.number(_NUMBERS[4]))
    offset = int(reader.number(_COUNT))
    per_block, size = _BLOCKS.get(kind, (1, 0))
    return offset + elements // per_block * size


def _info(path: Path, pairs: dict[str, Any]) -> GgufInfo:
    architecture = pairs.get("general.architecture")
    if not isinstance(architecture, str):
        raise LoadError(f"{path} names no general.architecture: it is not a language model")
    heads = _integer(pairs, f"{architecture}.attention.head_count") or 0
    width = _integer(pairs, f"{architecture}.embedding_length") or 0
    head_size = _integer(pairs, f"{architecture}.attention.key_length")
    return GgufInfo(
        name=str(pairs.get("general.name") or path.stem),
        architecture=architecture,
        context_length=_integer(pairs, f"{architecture}.context_length") or 0,
        eos_token_id=_integer(pairs, "tokenizer.ggml.eos_token_id"),
        bos_token_id=_integer(pairs, "tokenizer.ggml.bos_token_id"),
        add_bos=pairs.get("tokenizer.ggml.add_bos_token") is True,
        chat_template=_text(pairs, "tokenizer.chat_template"),
        quantization=_FILE_TYPES.get(_integer(pairs, "general.file_type") or 0),
        tokenizer=_text(pairs, "tokenizer.ggml.model"),
        layers=_integer(pairs, f"{architecture}.block_count") or 0,
        heads_kv=_integer(pairs, f"{architecture}.attention.head_count_kv") or heads,
        head_size=head_size or (width // heads if heads else 0),
        vocabulary=_array(pairs, "tokenizer.ggml.tokens", str),
        token_types=_array(pairs, "tokenizer.ggml.token_type", int),
    )


def _integer(pairs: dict[str, Any], key: str) -> int | None:
    value = pairs.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(pairs: dict[str, Any], key: str) -> str | None:
    value = pairs.get(key)
    return value if isinstance(value, str) else None


def _array(pairs: dict[str, Any], key: str, kind: type) -> tuple[Any, ...]:
    value = pairs.get(key)
    if isinstance(value, tuple) and all(isinstance(item, kind) for item in value):
        return value
    return ()
