"""Servers that several modules of end-to-end tests share."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_models
import pytest
from openai_upstream import OpenAIUpstream
from serving import Server


@pytest.fixture(scope="package")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`plain` and `halves` return what they get, of every datatype; `mlp`, `sequences`."""
    folder = tmp_path_factory.mktemp("tensors")
    models = [
        onnx_models.identities(folder / "plain.onnx", onnx_models.PLAIN),
        onnx_models.identities(folder / "halves.onnx", onnx_models.HALVES),
        onnx_models.mlp(folder / "mlp.onnx"),
        onnx_models.sequences(folder / "sequences.onnx"),
    ]
    flags = [flag for model in models for flag in ("--model", model)]
    with Server(*flags, "--batch-delay-us", "1000") as server:
        yield server


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAIUpstream]:
    with OpenAIUpstream(tmp_path_factory.mktemp("up") / "s") as running:
        yield running
