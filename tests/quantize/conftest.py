"""Tests of methods are collected only where the libraries are that they are about."""

from __future__ import annotations

from importlib.util import find_spec

NEEDED = {
    "test_torch_*": "torch",
    "test_llm_*": "llmcompressor",
    "test_tensorrt_*": "tensorrt_rtx_bindings",
}

collect_ignore_glob = [
    f"{pattern}.py" for pattern, library in NEEDED.items() if find_spec(library) is None
]
