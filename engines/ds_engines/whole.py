"""Engines that are given whole requests, each with its own tensors, and answer them one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ds_engines.base import Array, BatchEngine, Tensors
from ds_engines.errors import ServeError

Output = tuple[str, str, Array]
"""Name, KServe datatype, array."""


class WholeRequest(Protocol):
    """One request inside a worker. It is copied: the engine may keep and change it.

    `outputs` is empty where all are wanted. `sequence` is 0 or "" where there is none,
    `timeout_us` the client's own timeout, 0 for none. `deadline` is in seconds of the monotonic
    clock; requests of different `partition` share nothing.
    """

    id: str
    inputs: Tensors
    outputs: tuple[str, ...]
    parameters: Mapping[str, Any]
    sequence: int | str
    start: bool
    end: bool
    timeout_us: int
    deadline: float
    partition: str

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""

    def respond(
        self,
        outputs: Sequence[Output] | None,
        error: ServeError | None,
        *,
        final: bool,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """One answer, from any thread; nothing happens after the final one. None: no outputs, and
        an answer only where it is final. `parameters` are texts, flags and whole numbers of 64
        bits, for the client.
        """


@dataclass
class ModelCall:
    """A request of a model to another model of the server. `version` "" is the newest."""

    model: str
    version: str
    inputs: list[Output]
    outputs: tuple[str, ...]
    deadline: float
    id: str = ""
    partition: str = ""
    sequence: int | str = 0
    start: bool = False
    end: bool = False
    timeout_us: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelReply:
    """One answer to a ModelCall."""

    outputs: list[Output]
    final: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Caller(Protocol):
    """The way to the other models of the server, for threads other than the worker's loop."""

    def infer(self, call: ModelCall) -> Future[ModelReply]:
        """The one answer; the future raises the errors of ds_engines.errors."""

    def submit(self, call: ModelCall) -> Iterator[ModelReply]:
        """The answers as they come. Raises the errors of ds_engines.errors."""

    def ready(self, model: str, version: str) -> bool:
        """Whether that model answers."""


@runtime_checkable
class RequestEngine(BatchEngine, Protocol):
    """`joins`: whether several requests may be given together."""

    joins: bool

    def use(self, caller: Caller) -> None:
        """From now on the model may call others."""

    def execute(self, requests: Sequence[WholeRequest], instance: int | None = None) -> None:
        """Run them in the caller's thread, on that instance of the model, or on one that is free.
        Answers may come later, from other threads.
        """
