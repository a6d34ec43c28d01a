"""The one object behind every front-end: which models there are, and requests to them."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ds_engines.errors import Lost, NotFound, ServeError, Unavailable
from ds_engines.spec import ModelSpec
from ds_serve.gateway.backend import Backend, TensorBackend
from ds_serve.gateway.config import Limits
from ds_serve.gateway.control import Control
from ds_serve.gateway.regions import Regions
from ds_serve.gateway.requests import Abandon, Done, InferReply, InferRequest
from ds_serve.tracing import Tracer, TraceSettings
from ds_serve.transport.arena import Block
from ds_serve.transport.messages import ModelState, Registry, Statistics

if TYPE_CHECKING:
    from ds_serve.gateway.text import TextBackend

log = logging.getLogger(__name__)

READY = "ready"

METRICS_SECONDS = 0.25
"""How long a reader of the metrics waits for the workers' newest figures."""


class Gateway:
    """Models by name. The supervisor's word (`update`) is the only way they change."""

    def __init__(
        self, limits: Limits, tracing: TraceSettings | None = None, folder: Path | None = None
    ) -> None:
        """`folder`: what all gateways of the server share."""
        self.limits = limits
        self.tracer = Tracer(tracing)
        self.draining = False
        self.control = Control()
        self.regions = Regions((folder or Path(tempfile.gettempdir())) / "regions")
        self._informed = False
        self._states: dict[str, ModelState] = {}
        self._backends: dict[str, Backend] = {}

    @property
    def ready(self) -> bool:
        """Every model answers, and the server is not shutting down."""
        return self._informed and not self.draining and not self.unready()

    def unready(self) -> dict[str, str]:
        """Name and state of each model that does not answer."""
        return {
            state.name: f"{state.state}: {state.reason}" if state.reason else state.state
            for state in self._states.values()
            if state.state != READY
        }

    def states(self) -> Iterator[ModelState]:
        """All models, in the order in which the user named them."""
        return iter(self._states.values())

    async def update(self, registry: Registry) -> None:
        """Take over what the supervisor says; drop links to workers that are gone."""
        if any(map(_is_text, registry.models)):
            # Its HTTP client takes long to import: other models are answered meanwhile, and this
            # one is not ready before.
            await asyncio.to_thread(import_module, "ds_serve.gateway.text")
        self._informed = True
        states = {state.name: state for state in registry.models}
        for name, known in list(self._states.items()):
            new = states.get(name)
            if new is None or (new.incarnation, new.state) != (known.incarnation, known.state):
                self._drop(name, new)
        self._states = states
        for state in registry.models:
            if state.state == READY and state.name not in self._backends:
                try:
                    self._backends[state.name] = await self._connect(state)
                except OSError as error:
                    log.warning("model %s: no link to its worker: %s", state.name, error)

    def spec(self, name: str, version: str = "") -> ModelSpec:
        """The spec of a model that is ready. Raises NotFound, Unavailable."""
        state = self.state(name, version)
        if state.spec is None or name not in self._backends:
            raise _unavailable(state)
        return state.spec

    def state(self, name: str, version: str = "") -> ModelState:
        """Raises NotFound for an unknown name or version."""
        state = self._states.get(name)
        if state is None:
            if not self._informed:
                raise Unavailable("the server is starting")
            known = ", ".join(self._states) or "none"
            raise NotFound(f"there is no model {name!r}; the models are: {known}")
        if version and state.spec is not None and version != state.spec.version:
            raise NotFound(
                f"model {name!r} has no version {version!r}; it has {state.spec.version!r}"
            )
        return state

    def backend(self, name: str, version: str = "") -> Backend:
        """Raises NotFound, Unavailable."""
        state = self.state(name, version)
        backend = self._backends.get(name)
        if backend is None:
            raise _unavailable(state)
        return backend

    def seconds(self, name: str) -> float:
        """How long a request to that model may take at most."""
        state = self._states.get(name)
        is_text = state is not None and _is_text(state)
        return self.limits.text_timeout if is_text else self.limits.request_timeout

    def text(self, name: str) -> TextBackend:
        """The OpenAI server behind a text model. Raises NotFound, also for a tensor model."""
        backend = self.backend(name)
        if not _is_text(self._states[name]):
            raise NotFound(
                f"model {name!r} takes tensors: send it to /v2/models/{name}/infer or over gRPC"
            )
        return cast("TextBackend", backend)

    def begin(self, request: InferRequest, done: Done) -> Abandon:
        """As `infer`, without a task. Raises what is wrong at once; `done` is told the rest."""
        return self.backend(request.model, request.version).begin(request, done)

    def room(self, name: str, size: int, before: int) -> Block | None:
        """Memory for a body that goes to that model, where its worker can read it."""
        backend = self._backends.get(name)
        return None if backend is None else backend.room(size, before)

    async def infer(self, request: InferRequest) -> InferReply:
        """The one answer. Raises the errors of ds_engines.errors."""
        return await self.backend(request.model, request.version).infer(request)

    def submit(self, request: InferRequest) -> AsyncIterator[InferReply]:
        """The answers as they come; several where the model is decoupled."""
        return self.backend(request.model, request.version).submit(request)

    async def statistics(self, name: str, version: str = "") -> Statistics:
        return await self.backend(name, version).statistics()

    async def tell_metrics(self) -> None:
        """Have the workers write what they have counted; one that is busy is not waited for."""
        asked = [asyncio.ensure_future(each.statistics()) for each in self._backends.values()]
        if asked:
            _, late = await asyncio.wait(asked, timeout=METRICS_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    def close(self) -> None:
        """Fail what is still in flight."""
        for name in list(self._backends):
            self._drop(name, None)
        self.tracer.flush()

    async def _connect(self, state: ModelState) -> Backend:
        if state.spec is None:
            raise _unavailable(state)
        if _is_text(state):
            from ds_serve.gateway.text import TextBackend  # noqa: PLC0415

            return TextBackend(state.spec, state.address)
        backend = TensorBackend(state.spec, self.regions)
        await backend.connect(state.address)
        return backend

    def _drop(self, name: str, new: ModelState | None) -> None:
        backend = self._backends.pop(name, None)
        if backend is None:
            return
        reason = new.reason if new is not None and new.reason else "the server is shutting down"
        backend.close(Lost(f"model {name!r} lost this request: {reason}"))


def _is_text(state: ModelState) -> bool:
    return state.spec is not None and state.spec.task == "text"


def _unavailable(state: ModelState) -> ServeError:
    reason = f": {state.reason}" if state.reason else ""
    error = Unavailable(f"model {state.name!r} is {state.state}{reason}")
    if state.state == "failed":  # waiting does not help
        error.retry_after = None
    return error
