"""What a model is: its tensors, how it may be batched, which engine runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Task = Literal["tensor", "text"]
TimeoutAction = Literal["REJECT", "DELAY"]


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output.

    `datatype` is a KServe v2 name (`FP32`, `BYTES`, ...). `shape` is whole, as the engine sees
    it, with -1 for a dynamic axis. `batch_axis` is the axis along which rows of several requests
    are joined; None for a tensor that all requests of a batch must have in common. `labels` are
    names for the elements of an output, the first's first.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    batch_axis: int | None = None
    optional: bool = False
    labels: tuple[str, ...] = ()


class QueuePolicy(msgspec.Struct, frozen=True):
    """How long requests may wait, and how many. `timeout_us` 0: no timeout, in microseconds.

    A request that has waited longer is refused, or runs after all others of its priority. With
    `allow_timeout_override` a request may bring a shorter timeout of its own.
    """

    max_queue_size: int = 1024
    timeout_us: int = 0
    timeout_action: TimeoutAction = "REJECT"
    allow_timeout_override: bool = False


class BatchPolicy(msgspec.Struct, frozen=True):
    """How requests are joined. `max_batch_size` 0: the model cannot be batched.

    Delays and timeouts are in microseconds; 0 means no delay, and no timeout. Priorities are 1,
    the highest, to `priority_levels`; 0 levels: there are none. `priority_policies` are those of
    levels that have their own.
    """

    max_batch_size: int = 0
    max_delay_us: int = 0
    preferred_sizes: tuple[int, ...] = ()
    max_queue_size: int = 1024
    timeout_us: int = 0
    timeout_action: TimeoutAction = "REJECT"
    allow_timeout_override: bool = False
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority: int = 0
    priority_policies: tuple[tuple[int, QueuePolicy], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether requests wait in the order of their arrival, and none for too long."""
        return not (self.timeout_us or self.allow_timeout_override or self.priority_levels)

    def queue_policy(self, level: int) -> QueuePolicy:
        """The policy of a priority level, 0 for that of all that have none of their own."""
        default = QueuePolicy(
            self.max_queue_size, self.timeout_us, self.timeout_action, self.allow_timeout_override
        )
        return dict(self.priority_policies).get(level, default)

    def level(self, priority: int) -> int:
        """The level of a request that says `priority`: one that there is not is the default's."""
        return priority if 1 <= priority <= self.priority_levels else self.default_priority


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
