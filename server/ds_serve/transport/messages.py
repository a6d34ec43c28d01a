"""What travels between processes. Structs are arrays on the wire: short, and quick to read.

Times are seconds of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ds_engines.errors import ServeError, from_kind
from ds_engines.spec import ModelSpec
from ds_serve.logs import LogSettings
from ds_serve.tracing import TraceSettings
from ds_serve.transport.orders import Order
from ds_serve.upstream import Upstream


class Tensor(msgspec.Struct, array_like=True, gc=False):
    """A tensor in KServe's binary form.

    `data` holds the bytes, or the index of the message frame which holds them. Below zero it says
    which of the request's `places`: -1 is the first.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview | int


class InArena(msgspec.Struct, array_like=True, gc=False, tag=0):
    """Bytes in the gateway's arena."""

    offset: int
    size: int


class InRegion(msgspec.Struct, array_like=True, gc=False, tag=1):
    """Bytes in a client's memory object, which shm_open opens by `key`."""

    key: str
    inode: int
    offset: int
    size: int


class InCuda(msgspec.Struct, array_like=True, gc=False, tag=2):
    """Bytes in a client's memory on the GPU `device`, which CUDA opens by `handle`. `mark` tells
    one registration from the next.
    """

    handle: bytes
    device: int
    offset: int
    size: int
    mark: int


Where = InArena | InRegion | InCuda


class Schedule(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What a client says about when its request runs, and after which others.

    `priority` 1 is the highest, 0 the model's own default. `timeout_us`: microseconds, 0 for
    none. `sequence`: which requests belong together; 0 and "" say none.
    """

    priority: int = 0
    timeout_us: int = 0
    sequence: int | str = 0
    start: bool = False
    end: bool = False


class About(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What a client says of a request that only models which get whole requests are told."""

    id: str = ""
    parameters: dict[str, Any] = {}


class Infer(msgspec.Struct, array_like=True, gc=False, tag=0):
    """Gateway to worker: run this. The gateway has checked it against the model's spec.

    `partition`: requests of different ones share no cached answers and no sequences. `targets`:
    where on a GPU outputs are to be put.
    """

    id: int
    rows: int
    arrived: float
    deadline: float
    inputs: list[Tensor]
    outputs: tuple[str, ...]
    traced: bool = False
    places: list[Where] = []
    schedule: Schedule | None = None
    partition: str = ""
    about: About | None = None
    targets: list[tuple[str, InCuda]] = []


class Attach(msgspec.Struct, array_like=True, gc=False, tag=3):
    """Gateway to worker: my arena, where large tensors will lie."""

    pid: int
    fd: int
    size: int


class Attached(msgspec.Struct, array_like=True, gc=False, tag=2):
    """Worker to gateway: whether your arena can be read."""

    ok: bool


class Cancel(msgspec.Struct, array_like=True, gc=False, tag=1):
    """Gateway to worker: nobody waits for this answer any more."""

    id: int


class StatisticsQuery(msgspec.Struct, array_like=True, gc=False, tag=2):
    """Gateway to worker: how much have you done?"""

    id: int


class Fault(msgspec.Struct, array_like=True, gc=False):
    """An error on its way to a client: the name of its class, and its message."""

    kind: str
    message: str
    retry_after: float | None = None

    @classmethod
    def of(cls, error: ServeError) -> Fault:
        return cls(error.kind, str(error), error.retry_after)

    def error(self) -> ServeError:
        return from_kind(self.kind, self.message, self.retry_after)


class Answer(msgspec.Struct, array_like=True, gc=False, tag=0):
    """Worker to gateway: the outputs, or what went wrong.

    `times` are those that ds_serve.tracing.IN_WORKER names, for a request that is traced. One that
    is not `final` is followed by others. `parameters`: what the model tells the client beside.
    """

    id: int
    outputs: list[Tensor] = []
    fault: Fault | None = None
    times: tuple[int, ...] = ()
    final: bool = True
    parameters: dict[str, Any] | None = None


class Duration(msgspec.Struct, array_like=True):
    """How often something happened, and the nanoseconds that it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns


class BatchStatistics(msgspec.Struct, array_like=True):
    """Of all executions of one batch size."""

    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class Statistics(msgspec.Struct, array_like=True, tag=1):
    """Worker to gateway: what was done since the worker started."""

    id: int = 0
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    success: Duration = msgspec.field(default_factory=Duration)
    fail: Duration = msgspec.field(default_factory=Duration)
    queue: Duration = msgspec.field(default_factory=Duration)
    compute_input: Duration = msgspec.field(default_factory=Duration)
    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = msgspec.field(default_factory=dict)
    cache_hit: Duration = msgspec.field(default_factory=Duration)
    cache_miss: Duration = msgspec.field(default_factory=Duration)


# Between the supervisor and everybody else.


class Hello(msgspec.Struct, array_like=True, tag=0):
    """The first message of a child: which one it is."""

    identity: str


class Listening(msgspec.Struct, array_like=True, tag=3):
    """A gateway's ports are open."""


class Loaded(msgspec.Struct, array_like=True, tag=1):
    """A worker is ready to answer at `address`; `spec` is complete."""

    spec: ModelSpec
    address: str


class Watch(msgspec.Struct, array_like=True, tag=6):
    """A worker wants to know the models, as gateways do: its own sends requests to others."""


class Beat(msgspec.Struct, array_like=True, tag=2):
    """A worker is alive. `busy` is the age in seconds of its oldest running batch, or 0."""

    busy: float


class Stop(msgspec.Struct, array_like=True, tag=4):
    """Supervisor to child: finish what you have within `grace` seconds, then exit."""

    grace: float


class ModelState(msgspec.Struct, array_like=True):
    """What a gateway must know of one version of a model. `address` is set while it is ready.

    Where it is not `required`, the server is ready without it. `replicas`: of a text model that
    several workers serve, the addresses of those that are ready. `upstream`: of one that another
    server has, which.
    """

    name: str
    state: str
    reason: str = ""
    address: str = ""
    incarnation: int = 0
    spec: ModelSpec | None = None
    version: str = "1"
    required: bool = True
    replicas: tuple[str, ...] = ()
    upstream: Upstream | None = None


class Registry(msgspec.Struct, array_like=True, tag=5):
    """Supervisor to gateway: the models as they are now. Each one has a higher `serial`."""

    models: list[ModelState]
    serial: int = 0


class Tuning(msgspec.Struct, array_like=True, tag=7):
    """Supervisor to all children: log so, and trace so, `models` by settings of their own."""

    logs: LogSettings
    tracing: TraceSettings
    models: dict[str, TraceSettings]


class Reply(msgspec.Struct, array_like=True, tag=6):
    """Supervisor to gateway: what came of the order of that id."""

    id: int
    value: Any = None
    fault: Fault | None = None


class Seen(msgspec.Struct, array_like=True, tag=5):
    """Gateway to supervisor: the registry of that serial holds here. No request goes any more to
    workers that are not in it, but those at the addresses `leaving` still answer some.
    """

    serial: int
    leaving: list[str]


ToWorker = Infer | Cancel | StatisticsQuery | Attach
FromWorker = Answer | Statistics | Attached
ToSupervisor = Hello | Listening | Loaded | Beat | Seen | Watch | Order
FromSupervisor = Stop | Registry | Reply | Tuning
