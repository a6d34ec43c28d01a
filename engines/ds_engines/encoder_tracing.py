"""From PyTorch to OpenVINO, for encoders: the heavy half of `encoder_export`."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from ds_engines import no_telemetry
from ds_engines.encoder_folder import CLASSIFIER
from ds_engines.errors import LoadError

INPUTS = ("input_ids", "attention_mask")
ROWS, TOKENS = 2, 8
"""Of the example that is traced; neither may be 1, which would be taken for a fixed size."""

PROBE = (3, 21)
"""Rows and tokens that both are asked about, of other sizes than the example's."""

TOLERANCE = 1e-2
"""How far answers may be apart, of the largest number in them. FP32 in both gives 1e-5."""

_NOISY = ("torchao", "torch.utils._pytree", "torch.export")

no_telemetry.decline()


def convert(
    folder: Path, path: Path, architecture: str, progress: Callable[[str, float], None]
) -> None:
    """Write the graph of the encoder in `folder`. Raises LoadError."""
    with _quiet():
        model = _loaded(folder, architecture)
        progress("tracing", 0.2)
        graph = _traced(model, folder)
        progress("checking", 0.7)
        _check(graph, model, folder)
        progress("writing", 0.9)
        ov.save_model(graph, path, compress_to_fp16=False)


class _First(torch.nn.Module):  # type: ignore[misc]
    """The model with the one output that is used: logits, or the last states."""

    def __init__(self, model: Any, classifies: bool) -> None:
        super().__init__()
        self.model = model
        self.classifies = classifies

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return found.logits if self.classifies else found.last_hidden_state


def _loaded(folder: Path, architecture: str) -> Any:
    classifies = architecture.endswith(CLASSIFIER)
    auto = AutoModelForSequenceClassification if classifies else AutoModel
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        # Some models would compile themselves, which cannot be traced.
        if hasattr(config, "reference_compile"):
            config.reference_compile = False
        # Traced with the eager attention: the others look at the mask's values.
        model = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise LoadError(f"{folder} cannot be loaded as an encoder: {_line(error)}") from error
    return _First(model.eval(), classifies)


def _traced(model: Any, folder: Path) -> ov.Model:
    longest = int(getattr(model.model.config, "max_position_embeddings", 0) or 512)
    rows = torch.export.Dim("rows", min=1, max=1 << 16)
    tokens = torch.export.Dim("tokens", min=2, max=longest)
    sizes = [{0: rows, 1: tokens} for _ in INPUTS]
    try:
        with torch.inference_mode():
            program = torch.export.export(
                model, _example(ROWS, TOKENS), dynamic_shapes=sizes, strict=False
            )
            graph = ov.convert_model(program)
    except Exception as error:  # of both libraries, as many kinds as there are operators
        raise LoadError(f"{folder} cannot be converted: {_line(error)}") from error
    for port, name in zip(graph.inputs, INPUTS, strict=True):
        port.get_tensor().set_names({name})
    name = "logits" if model.classifies else "last_hidden_state"
    graph.output(0).get_tensor().set_names({name})
    return graph


def _example(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = 5 + torch.arange(rows * tokens).reshape(rows, tokens) % 11
    mask = torch.ones_like(ids)
    mask[0, tokens // 2 :] = 0
    return ids, mask


def _check(graph: ov.Model, model: Any, folder: Path) -> None:
    """Padding does not matter: states of it are no answer."""
    ids, mask = _example(*PROBE)
    with torch.inference_mode():
        expected = model(ids, mask).numpy()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(graph, "CPU", settings)
    found = np.array(compiled([ids.numpy(), mask.numpy()])[0])
    present = mask.numpy().astype(bool) if found.ndim == 3 else ...
    apart = np.abs(found[present] - expected[present]).max() / np.abs(expected[present]).max()
    if not apart <= TOLERANCE:
        raise LoadError(f"{folder}: OpenVINO's answers are {apart:.1%} off PyTorch's")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings, which are of no use to the user, and without their bars."""
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
