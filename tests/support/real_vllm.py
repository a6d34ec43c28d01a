"""A real vLLM for tests, where DS_VLLM_PYTHON names an interpreter that has one; and models for it.

DS_VLLM_MODEL is a chat model's Hugging Face folder; SmolLM2-135M-Instruct is enough.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import encoder_folders
import numpy as np
import pytest
from serving import Server

PYTHON, MODEL = os.environ.get("DS_VLLM_PYTHON", ""), os.environ.get("DS_VLLM_MODEL", "")
START_SECONDS = 600.0

MARKS = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not (PYTHON and Path(MODEL, "config.json").is_file()),
        reason="DS_VLLM_PYTHON names no interpreter with vLLM, or DS_VLLM_MODEL no model's folder",
    ),
]

_WIDER = {16: 64, 24: 128}
"""What vLLM's attention asks of small encoders: heads of 32 numbers."""


@contextmanager
def serving(*arguments: str | Path) -> Iterator[Server]:
    """ds-serve with vLLM, which may take minutes to start. What follows `--` must be last."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    server = Server("--gateways", "1", *arguments)
    try:
        yield server.start().wait_ready(START_SECONDS)
    finally:
        server.close()


def encoder(folder: Path, case: dict[str, Any]) -> Path:
    """A case of `encoder_folders`, as wide as vLLM needs it, with what Transformers reads too."""
    shapes = {name: [_WIDER.get(n, n) for n in shape] for name, shape in case["shapes"].items()}
    wider = case | {
        "config": case["config"] | {"hidden_size": 64, "intermediate_size": 128},
        "shapes": shapes,
    }
    encoder_folders.write(folder, wider)
    tokenizer = encoder_folders.tokenizer() | {"truncation": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    special = ("pad", "unk", "cls", "sep")
    about = {f"{name}_token": f"[{name.upper()}]" for name in special}
    about |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def adapter(folder: Path, model: Path, seed: int) -> Path:
    """For all layers' `o_proj` of a Llama, as PEFT writes it, of random numbers."""
    config = json.loads((model / "config.json").read_text())
    width, rank = config["hidden_size"], 8
    tensors = {}
    random = np.random.RandomState(seed)
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        a = random.standard_normal((rank, width)) / width**0.5
        tensors[f"{name}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = random.standard_normal((width, rank)).astype(np.float32)
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(encoder_folders.safetensors(tensors))
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["o_proj"]}
    about |= {"task_type": "CAUSAL_LM", "bias": "none", "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder
