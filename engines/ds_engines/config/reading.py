"""A config.pbtxt as a message, and what is wrong with its text."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from google.protobuf import text_format

from ds_engines.errors import ConfigError
from ds_proto.model_config_pb2 import ModelConfig

STATED_ZERO = -1
"""`max_batch_size: 0` as `read` gives it, because a message cannot tell 0 from nothing said."""

_ZERO = re.compile(r"(?<![\w.])max_batch_size\s*:\s*[-+]?0+(?![\w.])")
_QUOTED_OR_COMMENT = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|#[^\n]*")
_NO_FIELD = re.compile(r"Message type \"(?:\w+\.)*(\w+)\" has no field named \"(.+)\"")


def read(path: Path) -> ModelConfig:
    """The configuration in a file. A `max_batch_size: 0` written out is given as STATED_ZERO.

    Raises ConfigError naming file, line and field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    config = ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise ConfigError(_explain(path, text, error)) from None
    if config.max_batch_size < 0:
        raise ConfigError(f"{path}: max_batch_size is {config.max_batch_size}, it must be >= 0")
    if not config.max_batch_size and _ZERO.search(_QUOTED_OR_COMMENT.sub(" ", text)):
        config.max_batch_size = STATED_ZERO
    return config


def _explain(path: Path, text: str, error: text_format.ParseError) -> str:
    line, column = error.GetLine() or 0, error.GetColumn() or 0
    message = str(error).removeprefix(f"{line}:{column} : ")
    lines = text.split("\n")
    if line and message.startswith(f"'{lines[line - 1]}': "):
        message = message.removeprefix(f"'{lines[line - 1]}': ")
    unknown = _NO_FIELD.search(message)
    if unknown:
        return f"{path}:{line}: {_unknown(*unknown.groups())}"
    before = "\n".join([*lines[: line - 1], lines[line - 1][: column - 1]]) if line else ""
    fields = re.findall(r"([A-Za-z_]\w*)\s*:", _QUOTED_OR_COMMENT.sub(" ", before))
    where = f"field {fields[-1]!r}: " if fields and "field" not in message else ""
    return f"{path}:{line}: {where}{message}"


def _unknown(message: str, field: str) -> str:
    descriptor = ModelConfig.DESCRIPTOR.file.message_types_by_name.get(message)
    names = [] if descriptor is None else [*descriptor.fields_by_name]
    close = get_close_matches(field, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{message} has no field {field!r}{hint}"
