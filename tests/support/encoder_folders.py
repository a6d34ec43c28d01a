"""Small encoders as Hugging Face folders, with weights that anyone can make again.

tests/engines/data/encoders.json has their configurations, their tensors' names and shapes, and what
Transformers answers for them: `encoder_reference.py` wrote it. minilm.json has what
sentence-transformers answers for all-MiniLM-L6-v2.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent.parent / "engines/data"

WORDS = [
    "the", "a", "cat", "dog", "bird", "sat", "ran", "on", "under", "mat", "hill", "good", "bad",
    "film", "was", "is", "not", "very",
]  # fmt: skip
SPECIAL = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
VOCABULARY = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}


def cases() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / "encoders.json").read_text())
    return found


def minilm() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / "minilm.json").read_text())
    return found


def write(folder: Path, case: dict[str, Any], more: dict[str, Any] | None = None) -> Path:
    """The case's folder; `more` are further fields of its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case["config"] | (more or {})))
    (folder / "model.safetensors").write_bytes(safetensors(weights(case["shapes"])))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    return folder


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    return {name: _values(name, shape) for name, shape in shapes.items()}


def _values(name: str, shape: list[int]) -> np.ndarray:
    # RandomState's numbers are the same in every release of numpy.
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith(("LayerNorm.weight", "layer_norm.weight")):
        return (1 + 0.1 * values).astype(np.float32)
    return (0.3 * values).astype(np.float32)


def safetensors(tensors: dict[str, np.ndarray], kind: str = "F32") -> bytes:
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tokenizer() -> dict[str, Any]:
    """A tokenizer.json of whole words, and a length limit that a server must not keep."""
    special = [{"id": name, "ids": [VOCABULARY[name]], "tokens": [name]} for name in SPECIAL]
    one = [_special("[CLS]", 0), _sequence("A", 0), _special("[SEP]", 0)]
    two = [_sequence("B", 1), _special("[SEP]", 1)]
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 0
        },
        "padding": None,
        "added_tokens": [
            {
                "id": VOCABULARY[name], "content": name, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True,
            }
            for name in SPECIAL
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing", "single": one, "pair": [*one, *two],
            "special_tokens": {each["id"]: each for each in special},
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "[UNK]"},
    }  # fmt: skip


def _special(name: str, kind: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": kind}}


def _sequence(name: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": kind}}
