"""The tokenizer of a GGUF file as a Hugging Face folder, for clients that want one.

    python -m ds_engines.gguf_tokenizer MODEL.gguf -o FOLDER

Byte-level BPE, as the library `tokenizers` reads it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_engines import gguf
from ds_engines.errors import LoadError

CONTROL = 3
NEEDED = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))
DIGITS_APART = ("smollm", "starcoder", "refact", "command-r")
"""Kinds of pre-tokenization (`tokenizer.ggml.pre`) that split numbers into digits."""


def write(model: Path, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json. Raises LoadError where the file has none."""
    pairs = gguf.read_pairs(model)
    if pairs.get("tokenizer.ggml.model") != "gpt2":
        kind = pairs.get("tokenizer.ggml.model")
        raise LoadError(f"{model} has a tokenizer of kind {kind!r}, not gpt2 (byte-level BPE)")
    if lacks := [key for key in NEEDED if not isinstance(pairs.get(key), tuple)]:
        raise LoadError(f"{model} has no {', '.join(lacks)}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(pairs)))
    (folder / "tokenizer_config.json").write_text(json.dumps(_config(pairs), indent=1))


def _tokenizer(pairs: dict[str, Any]) -> dict[str, Any]:
    tokens, kinds = pairs["tokenizer.ggml.tokens"], pairs["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [
        {"id": number, "content": token, "special": True, **plain}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == CONTROL
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = True
    return {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*_digits(pairs), byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": list(pairs["tokenizer.ggml.merges"]),
        },
    }


def _digits(pairs: dict[str, Any]) -> list[dict[str, Any]]:
    apart = pairs.get("tokenizer.ggml.pre") in DIGITS_APART
    return [{"type": "Digits", "individual_digits": True}] if apart else []


def _config(pairs: dict[str, Any]) -> dict[str, Any]:
    tokens = pairs["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in ("bos", "eos"):
        number = pairs.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None:
            config[f"{name}_token"] = tokens[number]
    if template := pairs.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ds_engines.gguf_tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a .gguf file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder to write")
    given = parser.parse_args(arguments)
    try:
        write(given.model, given.output)
    except LoadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
