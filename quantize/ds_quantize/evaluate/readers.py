"""Language models that say of each token of a text how likely every next one is."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import numpy as np
import torch

from ds_quantize.forms import FolderModel
from ds_quantize.llm_methods import folder
from ds_quantize.llm_methods.quiet import quiet
from ds_quantize.openvino_methods import folder as openvino_folder
from ds_quantize.openvino_methods.stateful import Stateful

Scores = Callable[[torch.Tensor], torch.Tensor]
"""Token ids int64 [n] to scores float32 [n, vocabulary]."""

ENGINES = {"huggingface": "transformers", "openvino": "openvino"}

PIECE = 64
"""Tokens that OpenVINO is given at a time: those before come out of its cache, with whatever
precision it keeps, as they do when it writes."""


@contextlib.contextmanager
def opened(model: FolderModel, threads: int) -> Iterator[Scores]:
    """The model in its engine, for as long as the context lasts. Raises SourceError."""
    if model.form == "openvino":
        yield _by_openvino(Stateful(model.path, threads))
    else:
        with quiet():
            loaded = folder.loaded(model.path)
        yield _by_transformers(loaded)
        del loaded
    gc.collect()


def size(model: FolderModel) -> int:
    """Bytes of its weights."""
    of = openvino_folder.size if model.form == "openvino" else folder.size
    return of(model.path)


def _by_transformers(model: torch.nn.Module) -> Scores:
    def scores(ids: torch.Tensor) -> torch.Tensor:
        with quiet(), torch.inference_mode():
            found: torch.Tensor = model(input_ids=ids[None], use_cache=False).logits[0].float()
        return found

    return scores


def _by_openvino(model: Stateful) -> Scores:
    def scores(ids: torch.Tensor) -> torch.Tensor:
        model.forget()
        pieces = [
            model.read(ids[None, start : start + PIECE].numpy())[0]
            for start in range(0, len(ids), PIECE)
        ]
        return torch.from_numpy(np.concatenate(pieces))

    return scores
