"""The one object behind every front-end: which models there are, and requests to them."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ds_engines.errors import Lost, NotFound, ServeError, Unavailable, Unsupported
from ds_engines.spec import ModelSpec
from ds_serve.edge.escalation import EscalatingBackend
from ds_serve.edge.upstream import UpstreamBackend
from ds_serve.ensemble.backend import EnsembleBackend
from ds_serve.gateway.backend import Backend, TensorBackend
from ds_serve.gateway.config import SERVER, Limits
from ds_serve.gateway.control import Control
from ds_serve.gateway.regions import Regions
from ds_serve.gateway.replicated import ReplicatedBackend
from ds_serve.gateway.requests import Abandon, Done, InferReply, InferRequest
from ds_serve.gateway.text import TextBackend
from ds_serve.gateway.text_backends import text_backend
from ds_serve.gateway.text_names import Names
from ds_serve.gateway.whole import WholeBackend
from ds_serve.security.guard import ANYBODY, Caller
from ds_serve.security.text_ledger import TextLedger
from ds_serve.tracing import Tracer, TraceSettings
from ds_serve.transport.arena import Block
from ds_serve.transport.messages import InCuda, ModelState, Registry, Statistics, Tuning

log = logging.getLogger(__name__)

READY = "ready"
PYTHON = "python"

METRICS_SECONDS = 0.25
"""How long a reader of the metrics waits for the workers' newest figures."""

SHUTDOWN = "the server is shutting down"

IDLE_SECONDS = 0.05
"""How often is looked whether a worker that is to go has answered everything."""

Key = tuple[str, str]
"""Name and version."""


class Served(NamedTuple):
    """A version of a model that answers: what the supervisor says of it, and the way to it."""

    state: ModelState
    backend: Backend


class Gateway:
    """Models by name and version. The supervisor's word (`update`) is the only way they change.

    Where a version may be left out, the newest that is ready is meant.
    """

    def __init__(
        self,
        limits: Limits,
        tracing: TraceSettings | None = None,
        folder: Path | None = None,
        *,
        strict_readiness: bool = True,
    ) -> None:
        """`folder`: what all gateways of the server share."""
        self.limits = limits
        self.name = SERVER
        self.tracer = Tracer(tracing)
        self._tracing: tuple[TraceSettings | None, dict[str, TraceSettings]] = (tracing, {})
        self.draining = False
        self.control = Control()
        private = folder or Path(tempfile.gettempdir())
        self.regions = Regions(private / "regions")
        self._no_regions = Regions(private / "no-regions")
        self.on_left: Callable[[], None] = _nothing
        """Called when an address is `leaving` no more."""
        self._strict = strict_readiness
        self._informed = False
        self._states: dict[Key, ModelState] = {}
        self._served: dict[Key, Served] = {}
        self._newest: dict[str, Served] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._folder = folder
        self._ledger: TextLedger | None = None
        self.names = Names(self)

    @property
    def ready(self) -> bool:
        """The server is not shutting down, and every model answers (unless readiness is lax)."""
        return self._informed and not self.draining and not (self._strict and self.unready())

    @property
    def leaving(self) -> list[str]:
        """Addresses of workers that answer their last requests and get no more."""
        return list(self._leaving)

    def unready(self, caller: Caller = ANYBODY) -> dict[str, str]:
        """Name and state of each model that should answer and does not, of the caller's."""
        return {
            _called(state): f"{state.state}: {state.reason}" if state.reason else state.state
            for state in self._states.values()
            if state.state != READY and state.required and caller.allows(state.name)
        }

    def away(self, caller: Caller = ANYBODY) -> dict[str, str]:
        """The same of models that this server is ready without: their requests are refused because
        other servers fail, or have not said yet what the models are.
        """
        failing = {
            name: trouble
            for name, one in self._newest.items()
            if caller.allows(name) and (trouble := one.backend.trouble)
        }
        unknown = {
            _called(state): f"{state.state}: {state.reason}"
            for state in self._states.values()
            if caller.allows(state.name) and _is_unknown(state)
        }
        return failing | unknown

    def answers(self, name: str, version: str = "") -> bool:
        """Whether a model is ready, and its server too where another has it. Raises NotFound."""
        state = self.state(name, version)
        served = self._served.get((state.name, state.version))
        if state.state != READY or served is None:
            return state.state == READY
        return not served.backend.trouble

    def tune(self, tuning: Tuning) -> None:
        """Trace as the supervisor says. What has not changed goes on counting."""
        now = (tuning.tracing, tuning.models)
        if now != self._tracing:
            self._tracing = now
            self.tracer.update(*now)

    def states(self) -> Iterator[ModelState]:
        """All versions of all models, in the order in which the user named the models."""
        return iter(self._states.values())

    def versions(self, name: str) -> list[str]:
        """The versions of a model that are ready, the oldest first."""
        found = [key[1] for key in self._served if key[0] == name]
        return sorted(found, key=_age)

    async def update(self, registry: Registry) -> None:
        """Take over what the supervisor says. Requests to workers that are to go are finished."""
        states = {(state.name, state.version): state for state in registry.models}
        self._drop_lost(states)
        served = {key: await self._serve(key, state) for key, state in states.items()}
        before = self._served
        self._served = {key: one for key, one in served.items() if one is not None}
        self._newest = {
            name: self._served[name, version]
            for name, version in sorted(self._served, key=lambda key: _age(key[1]))
        }
        self._states = states
        self._informed = True
        for key, old in before.items():
            new = self._served.get(key)
            if new is None or new.backend is not old.backend:
                self._retire(old)

    def regions_of(self, caller: Caller) -> Regions:
        """Where tensors of the caller's may lie: nowhere, if its key does not allow that."""
        return self.regions if caller.shares_memory else self._no_regions

    def spec(self, name: str, version: str = "") -> ModelSpec:
        """The spec of a model that is ready. Raises NotFound, Unavailable."""
        spec = self._find(name, version).state.spec
        assert spec is not None, "it is served"
        return spec

    def state(self, name: str, version: str = "") -> ModelState:
        """Raises NotFound for an unknown name or version."""
        served = self._served.get((name, version)) if version else self._newest.get(name)
        if served is not None:
            return served.state
        states = [state for state in self._states.values() if state.name == name]
        if not states:
            if not self._informed:
                raise Unavailable("the server is starting")
            known = ", ".join(dict.fromkeys(key[0] for key in self._states)) or "none"
            # It begins as Triton's does, which clients know it by.
            raise NotFound(
                f"Request for unknown model: there is no model {name!r}; the models are: {known}"
            )
        states.sort(key=lambda state: _age(state.version))
        named = [state for state in states if version in ("", state.version)]
        if not named:
            has = ", ".join(repr(state.version) for state in states if state.version)
            raise NotFound(f"model {name!r} has no version {version!r}; it has {has or 'none'}")
        return named[-1]

    def backend(self, name: str, version: str = "") -> Backend:
        """Raises NotFound, Unavailable."""
        return self._find(name, version).backend

    def _asked(self, request: InferRequest) -> Backend:
        """The request's model. Raises Unsupported where it cannot take tensors that are on a GPU,
        as well as what `backend` raises.
        """
        backend = self.backend(request.model, request.version)
        if self.regions.has_cuda and type(backend) not in (TensorBackend, ReplicatedBackend):
            inputs = (one.data for one in request.inputs if isinstance(one.data, memoryview))
            if request.targets or any(isinstance(self.regions.source(d), InCuda) for d in inputs):
                raise Unsupported(
                    f"model {request.model!r} takes no CUDA shared memory: it is no model of one "
                    "tensor engine; system shared memory works in its place"
                )
        return backend

    def _find(self, name: str, version: str) -> Served:
        served = self._served.get((name, version)) if version else self._newest.get(name)
        if served is None:
            raise _unavailable(self.state(name, version))
        return served

    def seconds(self, name: str) -> float:
        """How long a request to that model may take at most."""
        served = self._newest.get(name)
        is_text = served is not None and _is_text(served.state)
        return self.limits.text_timeout if is_text else self.limits.request_timeout

    def texts(self) -> dict[str, TextBackend]:
        """The text models that answer, the newest version of each, in the order of their names."""
        return {
            name: one.backend
            for name, one in self._newest.items()
            if isinstance(one.backend, TextBackend)
        }

    def stand_ins(self, name: str) -> list[str]:
        """Who is asked in turn where that text model is full or fails, of those that answer."""
        chain = []
        while (name := self.limits.fallbacks.get(name, "")) and name not in chain:
            chain.append(name)
        texts = self.texts() if chain else {}
        return [each for each in chain if each in texts]

    def text(self, name: str) -> TextBackend:
        """The OpenAI server behind a text model. Raises NotFound, also for a tensor model."""
        served = self._find(name, "")
        if not _is_text(served.state):
            raise NotFound(
                f"model {name!r} takes tensors: send it to /v2/models/{name}/infer or over gRPC"
            )
        assert isinstance(served.backend, TextBackend), "its task says so"
        return served.backend

    def begin(self, request: InferRequest, done: Done) -> Abandon:
        """As `infer`, without a task. Raises what is wrong at once; `done` is told the rest."""
        return self._asked(request).begin(request, done)

    def room(self, name: str, size: int, before: int) -> Block | None:
        """Memory for a body that goes to that model, where its worker can read it."""
        served = self._newest.get(name)
        return None if served is None else served.backend.room(size, before)

    async def infer(self, request: InferRequest) -> InferReply:
        """The one answer. Raises the errors of ds_engines.errors."""
        return await self._asked(request).infer(request)

    def submit(self, request: InferRequest) -> AsyncIterator[InferReply]:
        """The answers as they come; several where the model is decoupled."""
        return self._asked(request).submit(request)

    async def statistics(self, name: str, version: str = "") -> Statistics:
        return await self.backend(name, version).statistics()

    async def tell_metrics(self) -> None:
        """Have the workers write what they have counted; one that is busy is not waited for."""
        asked = [
            asyncio.ensure_future(each.backend.statistics())
            for each in self._served.values()
            # Text models write at once; ensembles are run here, and other servers asked from here:
            # they are read from the metrics.
            if not (_is_text(each.state) or _is_ensemble(each.state) or each.state.upstream)
        ]
        if asked:
            _, late = await asyncio.wait(asked, timeout=METRICS_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    def close(self) -> None:
        """Fail what is still in flight."""
        for served in self._served.values():
            served.backend.close(_lost(served.state, SHUTDOWN))
        for task in self._leaving.values():
            task.cancel()
        self._served, self._newest = {}, {}
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            if ledger.bell is not None:
                asyncio.get_running_loop().remove_reader(ledger.bell.socket)
            # Requests that break off count themselves off until then.
            asyncio.get_running_loop().call_later(1.0, ledger.close)
        self.tracer.close()

    def _drop_lost(self, states: dict[Key, ModelState]) -> None:
        """Fail the requests to workers that died, at once and with the reason."""
        for key, served in list(self._served.items()):
            new = states.get(key)
            if new is None or new.state == READY or _is_ensemble(served.state):
                continue  # requests to an ensemble may be past the member that is lost
            del self._served[key]
            if self._newest.get(key[0]) is served:
                del self._newest[key[0]]
            served.backend.close(_lost(served.state, new.reason or new.state))

    async def _serve(self, key: Key, state: ModelState) -> Served | None:
        """The way to a version, which is the one that is there already unless it has moved."""
        if state.state != READY:
            return None
        served = self._served.get(key)
        if served is not None and served.state.address == state.address:
            await served.backend.move(state)
            return Served(state, served.backend)
        try:
            return Served(state, await self._connect(state))
        except OSError as error:
            log.warning("model %s: no link to its worker: %s", state.name, error)
            return None

    async def _connect(self, state: ModelState) -> Backend:
        if state.spec is None:
            raise _unavailable(state)
        if _is_text(state):
            return text_backend(state, self.limits, self._text_ledger())
        backend = await self._tensor_backend(state, state.spec)
        rule = self.limits.escalations.get(state.name)
        if rule is None:
            return backend
        return EscalatingBackend(state.spec, backend, rule, self.backend)

    async def _tensor_backend(self, state: ModelState, spec: ModelSpec) -> Backend:
        if _is_ensemble(state):
            return EnsembleBackend(spec, self.backend)
        if state.upstream is not None:
            return UpstreamBackend(spec, state.upstream, self.limits.upstream_probe)
        if state.replicas:
            several = ReplicatedBackend(spec, self.regions)
            await several.move(state)
            return several
        kind = WholeBackend if spec.engine == PYTHON else TensorBackend
        backend = kind(spec, self.regions)
        await backend.connect(state.address)
        return backend

    def _text_ledger(self) -> TextLedger:
        """Made with the first text model."""
        if self._ledger is None:
            self._ledger = TextLedger(self._folder)
            bell = self._ledger.bell
            if bell is not None:
                bell.heard.append(self._pump)
                asyncio.get_running_loop().add_reader(bell.socket, bell.hear)
        return self._ledger

    def _pump(self) -> None:
        """Another gateway has left room."""
        for backend in self.texts().values():
            backend.way.pump()

    def _retire(self, served: Served) -> None:
        task = asyncio.create_task(self._finish(served))
        self._leaving[served.state.address] = task

    async def _finish(self, served: Served) -> None:
        """Close the way to a worker that gets no more requests once it has answered them all."""
        try:
            await asyncio.sleep(IDLE_SECONDS)
            while served.backend.in_flight:
                await asyncio.sleep(IDLE_SECONDS)
        finally:
            served.backend.close(_lost(served.state, SHUTDOWN))
            del self._leaving[served.state.address]
        self.on_left()


def _is_text(state: ModelState) -> bool:
    return state.spec is not None and state.spec.task == "text"


def _is_ensemble(state: ModelState) -> bool:
    return state.spec is not None and bool(state.spec.steps)


def _is_unknown(state: ModelState) -> bool:
    """Whether another server has it, which has not said what it is."""
    return state.upstream is not None and state.state != READY and not state.required


def _unavailable(state: ModelState) -> ServeError:
    reason = f": {state.reason}" if state.reason else ""
    error = Unavailable(f"model {state.name!r} is {state.state}{reason}")
    if state.state == "failed":  # waiting does not help
        error.retry_after = None
    return error


def _lost(state: ModelState, reason: str) -> Lost:
    return Lost(f"model {state.name!r} lost this request: {reason}")


def _called(state: ModelState) -> str:
    """What a person calls it: most models have one version, and need no more than a name."""
    return state.name if state.version in ("", "1") else f"{state.name} version {state.version}"


def _age(version: str) -> tuple[int, str]:
    """By this versions are in order: numbers by their value."""
    return (int(version), version) if version.isdecimal() else (-1, version)


def _nothing() -> None:
    """Nobody wants to know."""
