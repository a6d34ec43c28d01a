"""Encoders on OpenVINO: token ids in, vectors or logits out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ds_engines import encoder_graph
from ds_engines.base import Array
from ds_engines.encoder_folder import EncoderInfo, needs_export
from ds_engines.encoder_pooling import pooled
from ds_engines.encoder_tokens import Tokens
from ds_engines.encoder_weights import Weights
from ds_engines.errors import EngineFailure, LoadError

_STEPS = ((128, 16), (256, 32), (1 << 30, 64))


class EncoderEngine:
    """One compiled network. `run` is called from one thread at a time.

    `width` is the length of a row of its answer. `half` computes in BF16 where the processor has
    it: two to three times as quick, and answers depend on the machine in their third digit.
    """

    def __init__(self, info: EncoderInfo, threads: int = 0, half: bool = False) -> None:
        self._info = info
        core = ov.Core()
        model = pooled(info, _network(core, info))
        self._names = [_name(port) for port in model.inputs]
        self._kinds = [port.element_type.to_dtype() for port in model.inputs]
        try:
            compiled = core.compile_model(model, "CPU", _settings(threads, half))
        except Exception as error:
            raise LoadError(f"OpenVINO cannot compile {info.folder}: {error}") from error
        self._request = compiled.create_infer_request()
        self.width: int = len(self.run([Tokens([0], [0])])[0])
        if info.classifies and self.width != len(info.labels):
            raise LoadError(
                f"{info.folder}: the network has {self.width} classes, and config.json names "
                f"{len(info.labels)} labels"
            )

    def run(self, rows: Sequence[Tokens]) -> Array:
        """FP32 [rows, width]: vectors, which may be of any length, or logits.

        Rows of several lengths are padded to the longest's. Blocks, and releases the interpreter
        lock meanwhile. Raises EngineFailure.
        """
        given = self._padded(rows)
        arrays = [
            given[name].astype(kind, copy=False)
            for name, kind in zip(self._names, self._kinds, strict=True)
        ]
        try:
            self._request.infer(dict(enumerate(arrays)), share_inputs=True)
            # Copied: the request's memory will hold the next answer.
            return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)
        except Exception as error:
            raise EngineFailure(f"OpenVINO failed: {error}") from error

    def _padded(self, rows: Sequence[Tokens]) -> dict[str, Array]:
        width = padded_length(max(len(row.ids) for row in rows), self._info.positions)
        padding = int(self._info.config.get("pad_token_id") or 0)
        ids = np.full((len(rows), width), padding, dtype=np.int64)
        mask = np.zeros_like(ids)
        types = np.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row.ids)] = row.ids
            types[at, : len(row.ids)] = row.types
            mask[at, : len(row.ids)] = 1
        types = np.minimum(types, self._info.types - 1)
        places = np.broadcast_to(np.arange(width), ids.shape)
        return {
            "input_ids": ids, "attention_mask": mask, "token_type_ids": types,
            "position_ids": places,
        }  # fmt: skip


def padded_length(length: int, most: int = 0) -> int:
    """The length that rows of `length` tokens are padded to: for a shape that it meets for the
    first time the library writes new code, so there are few. `most` bounds it where it is not 0.
    """
    step = next(step for limit, step in _STEPS if length <= limit)
    wanted = -(-length // step) * step
    return min(wanted, most) if most else wanted


def _network(core: Any, info: EncoderInfo) -> Any:
    if info.graph is None:
        if why := needs_export(info.folder):
            raise LoadError(f"{info.folder} must be converted first: {why}")
        return encoder_graph.build(info, Weights(info.folder))
    model = _read(core, info.graph)
    known = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    for port in model.inputs:
        if _name(port) not in known or len(port.partial_shape) != 2:
            raise LoadError(
                f"{info.graph} has an input {_name(port)!r}; an encoder has {', '.join(known)}"
            )
    model.reshape({port: [-1, -1] for port in model.inputs})
    return model


def _read(core: Any, path: Path) -> Any:
    try:
        return core.read_model(path)
    except Exception as error:
        raise LoadError(f"OpenVINO cannot read {path}: {error}") from None


def _name(port: Any) -> str:
    return str(port.get_any_name()) if port.get_names() else ""


def _settings(threads: int, half: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "NUM_STREAMS": 1,
        # Gateways share these processors.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
    }
    return settings | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
