"""What a model is: its tensors, how it may be batched, which engine runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Task = Literal["tensor", "text"]
ControlKind = Literal["START", "READY", "END", "CORRID"]
TimeoutAction = Literal["REJECT", "DELAY"]


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output.

    `datatype` is a KServe v2 name (`FP32`, `BYTES`, ...). `shape` is whole, as clients see it,
    with -1 for a dynamic axis; `reshape` is the model's own where that is another. `batch_axis` is
    the axis along which rows of several requests are joined; None for a tensor that all requests
    of a batch must have in common. `labels` are names for the elements of an output, the first's
    first. `format` says how an input's axes are meant, in Triton's words (`FORMAT_NCHW`, ...),
    which clients that send pictures look for.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    batch_axis: int | None = None
    optional: bool = False
    labels: tuple[str, ...] = ()
    format: str = "FORMAT_NONE"
    reshape: tuple[int, ...] | None = None


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


class Control(msgspec.Struct, frozen=True):
    """A model input by which a sequence's requests say where in it they are.

    `values`: what stands for false and for true. A CORRID has the sequence's id instead.
    """

    input: str
    kind: ControlKind
    datatype: str
    values: tuple[float, float] = (0, 1)


class StateTensor(msgspec.Struct, frozen=True):
    """An output that the sequence's next request gets as an input.

    `dims` are one row's, without the batch axis, -1 where they vary. The first request gets what
    `file` holds, or zeros; `initial_dims` are those of either, where they are given.
    """

    input: str
    output: str
    datatype: str
    dims: tuple[int, ...]
    initial_dims: tuple[int, ...] | None = None
    file: str = ""
    initial_name: str = ""


class SequencePolicy(msgspec.Struct, frozen=True):
    """How requests of sequences are scheduled, and what a sequence's model is told and keeps.

    `slots`: sequences that are served at a time; the others wait. `idle_us`: microseconds without
    a request after which a sequence loses its slot. `utilization`: the part of a direct batch that
    is run before `max_delay_us` is over. `shown`: outputs that are states, and are answers too.
    `instances`: so many instances of the model keep the state themselves, so that a sequence stays
    with one of them, and `slots` are dealt out to them evenly; 0 where none does.
    """

    strategy: Literal["direct", "oldest"] = "direct"
    slots: int = 1
    idle_us: int = 1_000_000
    max_delay_us: int = 0
    preferred_sizes: tuple[int, ...] = ()
    utilization: float = 0.0
    controls: tuple[Control, ...] = ()
    states: tuple[StateTensor, ...] = ()
    shown: tuple[str, ...] = ()
    instances: int = 0

    @property
    def inputs(self) -> set[str]:
        """Inputs that the server fills in."""
        return {control.input for control in self.controls} | {s.input for s in self.states}

    @property
    def outputs(self) -> set[str]:
        """Outputs that stay in the server."""
        return {state.output for state in self.states} - set(self.shown)


class WarmUpInput(msgspec.Struct, frozen=True):
    """One row of an input, without the batch axis. `source` is zero, random or a file's path."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    source: str = "zero"


class WarmUp(msgspec.Struct, frozen=True):
    """A batch that is run `count` times before the model is ready."""

    name: str
    batch_size: int
    count: int
    inputs: tuple[WarmUpInput, ...] = ()


class VersionPolicy(msgspec.Struct, frozen=True):
    """Which versions of a model are served: all, or those named, or so many of the highest."""

    latest: int = 1
    every: bool = False
    named: tuple[int, ...] = ()


class Step(msgspec.Struct, frozen=True):
    """One model's part in an ensemble.

    `version` is empty for the newest that is ready. `inputs` and `outputs` are pairs: the name of
    the model's tensor, and that of the ensemble's.
    """

    model: str
    version: str = ""
    inputs: tuple[tuple[str, str], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()


class ModelSpec(msgspec.Struct, frozen=True):
    """One version of one model, ready for an engine to load and a gateway to check against.

    `cached`: equal requests may be given the same answer. `decoupled`: a request has any number of
    answers. `steps` are those of an ensemble, whose `artifact` is its configuration. `defaulted`
    are inputs that the model file has values for: requests may bring them where the configuration
    names them, and then they are among `inputs`. `accelerated`: a GPU runs it.
    """

    name: str
    engine: str
    artifact: Path
    task: Task = "tensor"
    version: str = "1"
    versions: VersionPolicy = VersionPolicy()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    defaulted: tuple[TensorSpec, ...] = ()
    batch: BatchPolicy = BatchPolicy()
    slots: int = 1
    platform: str = ""
    parameters: dict[str, str] = {}
    sequence: SequencePolicy | None = None
    warm_ups: tuple[WarmUp, ...] = ()
    cached: bool = False
    decoupled: bool = False
    steps: tuple[Step, ...] = ()
    accelerated: bool = False

    @property
    def public(self) -> ModelSpec:
        """The model as clients see it: without the tensors that the server keeps to itself."""
        if self.sequence is None:
            return self
        inputs, outputs = self.sequence.inputs, self.sequence.outputs
        return msgspec.structs.replace(
            self,
            inputs=tuple(tensor for tensor in self.inputs if tensor.name not in inputs),
            outputs=tuple(tensor for tensor in self.outputs if tensor.name not in outputs),
        )

    def input(self, name: str) -> TensorSpec | None:
        """The input of that name, None where there is none."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)
