"""Texts out of rows of data, and tokens out of texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ds_engines.base import Tensors
from ds_quantize.data import Data
from ds_quantize.errors import DataError, SourceError

TEXT = "text"
MESSAGES = "messages"


def tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer. Raises SourceError."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        line = str(error).strip().partition("\n")[0]
        raise SourceError(f"the tokenizer of {folder} cannot be read: {line}") from error


def texts(data: Data, tokenizer: Any) -> Iterator[str]:
    """One text a row: its `text`, or its `messages` as the tokenizer's chat template has them.

    Raises DataError that names the row.
    """
    for row, batch in enumerate(data.batches(1)):
        yield _text(batch.inputs, tokenizer, f"{data.source}: row {row}")


def _text(inputs: Tensors, tokenizer: Any, where: str) -> str:
    name = next((name for name in (TEXT, MESSAGES) if name in inputs), "")
    values = inputs[name].ravel().tolist() if name else []
    if len(values) != 1 or not isinstance(values[0], bytes):
        has = ", ".join(inputs)
        raise DataError(f"{where} has {has}; a language model takes one {TEXT!r}, or {MESSAGES!r}")
    said = values[0].decode()
    return said if name == TEXT else _chat(said, tokenizer, where)


def _chat(said: str, tokenizer: Any, where: str) -> str:
    if not tokenizer.chat_template:
        raise DataError(f"{where} has {MESSAGES!r}, and the model has no chat template")
    try:
        return str(tokenizer.apply_chat_template(json.loads(said), tokenize=False))
    except Exception as error:  # the template is a program of the model's own
        raise DataError(f"{where}: {MESSAGES!r} does not suit the template: {error}") from error
