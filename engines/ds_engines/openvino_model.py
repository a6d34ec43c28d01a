"""What the CPU text engine has to know of a model before it loads it.

A model is a GGUF file, or a folder with OpenVINO's IR (`openvino_model.xml`), its tokenizer and
the Hugging Face configuration that it was converted from.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec

from ds_engines.errors import LoadError
from ds_engines.gguf import GgufInfo, read_metadata

ARCHITECTURES = ("llama", "qwen2", "qwen3")
TOKENIZERS = ("gpt2",)
# Tokens that end a turn in chat models whose file names only one end token.
END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end|>", "<|eom_id|>", "</s>")

IR = "openvino_model.xml"
CACHE = "u8"
"""The type of keys and values in the cache, where a folder's model does not ask for another."""

_CACHE = re.compile(rb'<KV_CACHE_PRECISION value="(\w+)"')
_TAIL = 1 << 16
"""Bytes at the end of the model's file, where its settings are."""

_FOLDER_FILES = (IR, "openvino_model.bin", "openvino_tokenizer.xml", "config.json")


class ModelInfo(msgspec.Struct, frozen=True):
    """One model. `path` is the GGUF file, or the folder.

    `context_length` is in tokens, 0 where the model sets no bound; `vocabulary` is the number of
    its output tokens; `stops` end an answer. `gguf` is set for a GGUF file. `cache` is the type
    that keys and values are remembered in, as OpenVINO calls it.
    """

    path: Path
    name: str
    architecture: str
    context_length: int
    layers: int
    heads_kv: int
    head_size: int
    vocabulary: int
    stops: frozenset[int]
    chat_template: str | None
    gguf: GgufInfo | None = None
    cache: str = CACHE


def check_artifact(path: Path) -> ModelInfo:
    """A model that this engine can load; raises LoadError saying why it cannot."""
    return _folder(path) if path.is_dir() else _gguf(path)


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder with a text model as OpenVINO's IR."""
    return all((path / name).is_file() for name in _FOLDER_FILES)


def _gguf(path: Path) -> ModelInfo:
    info = read_metadata(path)
    if info.architecture not in ARCHITECTURES:
        raise LoadError(
            f"{path} has architecture {info.architecture!r}; the CPU engine runs "
            f"{', '.join(ARCHITECTURES)}"
        )
    if info.tokenizer not in TOKENIZERS:
        raise LoadError(
            f"{path} has a tokenizer of kind {info.tokenizer!r}; the CPU engine reads "
            f"{', '.join(TOKENIZERS)} (byte-level BPE)"
        )
    if not (info.layers and info.heads_kv and info.head_size):
        raise LoadError(f"{path} does not say how many layers and attention heads it has")
    if not info.vocabulary or len(info.vocabulary) != len(info.token_types):
        raise LoadError(
            f"{path} has {len(info.vocabulary)} tokens and {len(info.token_types)} token types"
        )
    control = info.control_tokens()
    stops = {control[token] for token in END_TOKENS if token in control}
    return ModelInfo(
        path=path,
        name=info.name,
        architecture=info.architecture,
        context_length=info.context_length,
        layers=info.layers,
        heads_kv=info.heads_kv,
        head_size=info.head_size,
        vocabulary=len(info.vocabulary),
        stops=frozenset(stops if info.eos_token_id is None else stops | {info.eos_token_id}),
        chat_template=info.chat_template,
        gguf=info,
    )


def _folder(path: Path) -> ModelInfo:
    for name in _FOLDER_FILES:
        if not (path / name).is_file():
            raise LoadError(f"the OpenVINO model in {path} has no {name}")
    config = read_json(path / "config.json")
    config = config | config.get("text_config", {})
    heads = _number(config, "num_attention_heads")
    found = ModelInfo(
        path=path,
        name=path.name,
        architecture=str(config.get("model_type")),
        context_length=_number(config, "max_position_embeddings"),
        layers=_number(config, "num_hidden_layers"),
        heads_kv=_number(config, "num_key_value_heads") or heads,
        head_size=_number(config, "head_dim")
        or (_number(config, "hidden_size") // heads if heads else 0),
        vocabulary=_number(config, "vocab_size"),
        stops=_stops(path, config),
        chat_template=_template(path),
        cache=_cache(path / IR),
    )
    if not (found.layers and found.heads_kv and found.head_size and found.vocabulary):
        raise LoadError(
            f"{path / 'config.json'} does not say how many layers, attention heads and tokens "
            "the model has"
        )
    return found


def precision(threads: int) -> dict[str, str]:
    """What to tell OpenVINO about the precision that it calculates a folder's model in.

    `threads` 0 is all CPUs. A single thread divides by zero in its BF16 kernels for weights of 16
    bits, in OpenVINO 2026.4 on a CPU with AMX, and takes the process with it: that one gets FP32.
    """
    alone = (threads or len(os.sched_getaffinity(0))) == 1
    return {"INFERENCE_PRECISION_HINT": "f32"} if alone else {}


def _cache(path: Path) -> str:
    """The type that ds-quantize, or optimum-intel, has written into the model."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        found = _CACHE.search(file.read())
    return found.group(1).decode() if found else CACHE


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is none. Raises LoadError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise LoadError(f"{path} is not a JSON object")
    return found


def special_tokens(path: Path) -> dict[str, int]:
    """The added tokens of a folder's tokenizer.json that steer the model and are never text."""
    added = read_json(path / "tokenizer.json").get("added_tokens", [])
    return {token["content"]: token["id"] for token in added if token.get("special")}


def _stops(path: Path, config: dict[str, Any]) -> frozenset[int]:
    said = read_json(path / "generation_config.json").get("eos_token_id")
    said = config.get("eos_token_id") if said is None else said
    ids = said if isinstance(said, list) else [said]
    special = special_tokens(path)
    named = {special[token] for token in END_TOKENS if token in special}
    return frozenset(named | {number for number in ids if isinstance(number, int)})


def _template(path: Path) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    said = read_json(path / "tokenizer_config.json").get("chat_template")
    if isinstance(said, list):  # several by name
        said = next((each["template"] for each in said if each.get("name") == "default"), None)
    return said if isinstance(said, str) else None


def _number(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
