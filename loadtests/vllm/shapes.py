"""Models of known shapes with no weights: folders that `--load-format dummy` serves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

Config = dict[str, Any]

LLAMA: Config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

SIZES: dict[str, Config] = {
    # 8.0 billion parameters: the shape of Llama 3 8B.
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 32768,
    },
    # 20.4 billion: 44 layers of 6144.
    "20b": {
        "hidden_size": 6144,
        "intermediate_size": 19456,
        "num_hidden_layers": 44,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 64000,
        "max_position_embeddings": 8192,
    },
    # For a rehearsal on a processor.
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position_embeddings": 32768,
    },
}


def parameters(size: str) -> float:
    """Of a shape, in billions."""
    shape = SIZES[size]
    width, heads = shape["hidden_size"], shape["head_dim"]
    attention = width * heads * 2 * (shape["num_attention_heads"] + shape["num_key_value_heads"])
    layer = attention + 3 * width * shape["intermediate_size"]
    return (shape["num_hidden_layers"] * layer + 2 * width * shape["vocab_size"]) / 1e9


def llama(size: str, tokenizer: Path, folder: Path) -> Path:
    """A folder with that shape, and the tokenizer of the folder `tokenizer`."""
    out = folder / f"llama-{size}"
    copy_tokenizer(tokenizer, out)
    (out / "config.json").write_text(json.dumps(LLAMA | SIZES[size], indent=1))
    return out


def copy_tokenizer(source: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if "token" in file.name or "chat" in file.name or file.name in ("vocab.json", "merges.txt"):
            shutil.copy(file, out / file.name)
