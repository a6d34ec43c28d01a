"""A language model as OpenVINO runs it: it remembers what it has read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ds_engines.base import Array
from ds_engines.openvino_export import MODEL
from ds_engines.openvino_model import precision
from ds_quantize.errors import SourceError
from ds_quantize.openvino_methods.folder import CACHE


class Stateful:
    """The model of a folder on the CPU, with the precisions that it is served in.

    One that does not say how keys and values are to be remembered is as it was made, and keeps
    them in 16 bits here. Raises SourceError where it cannot be loaded.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        core = ov.Core()
        try:
            model = core.read_model(folder / MODEL)
            plain = {} if model.has_rt_info(CACHE) else {"KV_CACHE_PRECISION": "f16"}
            given = {"INFERENCE_NUM_THREADS": threads} | plain | precision(threads)
            compiled = core.compile_model(model, "CPU", given)
        except RuntimeError as error:
            line = str(error).strip().rpartition("\n")[2]
            raise SourceError(f"OpenVINO cannot load {folder / MODEL}: {line}") from error
        self._request: Any = compiled.create_infer_request()
        self.past = 0

    def forget(self) -> None:
        """All that was read."""
        self._request.reset_state()
        self.past = 0

    def read(self, ids: Array) -> Array:
        """Scores float32 [rows, tokens, vocabulary] of more tokens, int64 [rows, tokens]."""
        rows, total = len(ids), self.past + ids.shape[1]
        self._request.infer({
            "input_ids": ids,
            "attention_mask": np.ones((rows, total), np.int64),
            "position_ids": np.arange(self.past, total, dtype=np.int64)[None].repeat(rows, 0),
            "beam_idx": np.arange(rows, dtype=np.int32),
        })  # fmt: skip
        self.past = total
        found: Array = self._request.get_tensor("logits").data.astype(np.float32)
        return found
