"""What a model is: its tensors, how it may be batched, which engine runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Task = Literal["tensor", "text"]


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output.

    `datatype` is a KServe v2 name (`FP32`, `BYTES`, ...). `shape` is whole, as the engine sees
    it, with -1 for a dynamic axis. `batch_axis` is the axis along which rows of several requests
    are joined; None for a tensor that all requests of a batch must have in common.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    batch_axis: int | None = None
    optional: bool = False


class BatchPolicy(msgspec.Struct, frozen=True):
    """How requests are joined. `max_batch_size` 0: the model cannot be batched.

    Delays and timeouts are in microseconds; 0 means no delay, and no timeout.
    """

    max_batch_size: int = 0
    max_delay_us: int = 0
    preferred_sizes: tuple[int, ...] = ()
    max_queue_size: int = 1024
    timeout_us: int = 0


class ModelSpec(msgspec.Struct, frozen=True):
    """One version of one model, ready for an engine to load and a gateway to check against."""

    name: str
    engine: str
    artifact: Path
    task: Task = "tensor"
    version: str = "1"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    batch: BatchPolicy = BatchPolicy()
    slots: int = 1
    platform: str = ""
    parameters: dict[str, str] = {}

    def input(self, name: str) -> TensorSpec | None:
        """The input of that name, None where there is none."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)
