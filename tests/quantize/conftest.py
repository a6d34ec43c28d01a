"""Tests of methods are collected only where the libraries are that they are about."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

# loadtests, which has models to show, is imported from the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

NEEDED = {
    "test_torch_*": "torch",
    "test_llm_*": "llmcompressor",
    "test_tensorrt_*": "tensorrt_rtx_bindings",
}

collect_ignore_glob = [
    f"{pattern}.py" for pattern, library in NEEDED.items() if find_spec(library) is None
]
