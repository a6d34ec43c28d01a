"""Runs a Triton model.py: an object of its class for each slot, all in one process."""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ds_engines.base import EngineOptions, Tensors
from ds_engines.errors import EngineFailure, LoadError
from ds_engines.python_backend import config as configuration
from ds_engines.python_backend import loading, requests
from ds_engines.python_backend.faults import TritonModelException
from ds_engines.python_backend.model_config import ModelConfig as Completing
from ds_engines.python_backend.one import OneRequest
from ds_engines.python_backend.requests import (
    RESPONSE_COMPLETE_FINAL,
    Context,
    InferenceRequest,
    InferenceResponse,
    Served,
)
from ds_engines.spec import ModelSpec
from ds_engines.whole import Caller, WholeRequest
from ds_proto.model_config_pb2 import ModelConfig

log = logging.getLogger(__name__)


class PythonEngine:
    """`config` is what config.pbtxt says, of a file `source`. Raises ConfigError, LoadError."""

    def __init__(
        self,
        spec: ModelSpec,
        options: EngineOptions,
        config: ModelConfig | None = None,
        source: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        self._file = spec.artifact
        self._source = str(source or self._file)
        self._class = loading.model_class(self._file)
        config = self._complete(config or ModelConfig(), spec)
        self.spec = configuration.completed(spec, config, self._source, folder)
        self._served = Served.of(self.spec)
        joins = config.HasField("dynamic_batching") or config.HasField("sequence_batching")
        self.joins = joins and bool(self.spec.batch.max_batch_size)
        if not self.spec.outputs or not self.spec.inputs:
            missing = "inputs" if self.spec.outputs else "outputs"
            raise LoadError(
                f"{self._source}: the model has no {missing}: name them in config.pbtxt or in "
                "auto_complete_config"
            )
        self._coroutines = _Coroutines()
        self._instances: list[tuple[str, Any]] = []
        self._objects: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        said = json.dumps(configuration.as_json(config))
        for index in range(self.spec.slots):
            name = f"{self.spec.name}_0_{index}"
            self._instances.append((name, self._instance(name, said)))
            self._objects.put(self._instances[-1])

    def execute(self, given: Sequence[WholeRequest], instance: int | None = None) -> None:
        """Run requests on one object. What goes wrong is an answer to each."""
        name, model = self._objects.get() if instance is None else self._instances[instance]
        asked = [InferenceRequest.given(one, self._served) for one in given]
        said = Context(min(one.deadline for one in given), given[0].partition)
        token = requests.context.set(said)
        try:
            returned = model.execute(asked)
            if asyncio.iscoroutine(returned):
                self._run_coroutine(name, returned, asked, given)
            else:
                self._answer(asked, returned)
        except Exception as error:
            self._fail(name, error, asked, given)
        finally:
            requests.context.reset(token)
            if instance is None:
                self._objects.put((name, model))

    def use(self, caller: Caller) -> None:
        requests.allow_calls(caller)

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        """One request, as warm-ups have them. Raises what it was answered with."""
        one = OneRequest(batch, outputs)
        self.execute([one])
        return one.result()

    def close(self) -> None:
        """Call `finalize` of each object."""
        while not self._objects.empty():
            name, model = self._objects.get()
            try:
                if hasattr(model, "finalize"):
                    model.finalize()
            except Exception:
                log.exception("%s: finalize failed", name)

    def _complete(self, config: ModelConfig, spec: ModelSpec) -> ModelConfig:
        """With what the model says of itself, which must not contradict."""
        config.name, config.backend = config.name or spec.name, config.backend or "python"
        if not hasattr(self._class, "auto_complete_config"):
            return config
        completing = Completing(json.dumps(configuration.as_json(config)))
        what = "auto_complete_config"
        made = loading.guarded(
            self._file, what, lambda: self._class.auto_complete_config(completing)
        )
        if not isinstance(made, Completing):
            kind = type(made).__name__
            raise LoadError(f"{self._file}: {what} returned {kind}, it must return a ModelConfig")
        return configuration.from_json(made.as_dict(), self._source)

    def _instance(self, name: str, config: str) -> Any:
        model = loading.guarded(self._file, "TritonPythonModel()", self._class)
        if hasattr(model, "initialize"):
            arguments = self._arguments(name, config)
            loading.guarded(self._file, "initialize", lambda: model.initialize(arguments))
        return model

    def _arguments(self, name: str, config: str) -> Mapping[str, str]:
        return {
            "model_config": config,
            "model_instance_kind": "CPU",
            "model_instance_name": name,
            "model_instance_device_id": "0",
            "model_repository": str(self._file.parent.parent),
            "model_version": self.spec.version,
            "model_name": self.spec.name,
        }

    def _run_coroutine(
        self,
        name: str,
        coroutine: Coroutine[Any, Any, Any],
        asked: list[InferenceRequest],
        given: Sequence[WholeRequest],
    ) -> None:
        """A decoupled model's goes on by itself, and the object is free for more requests."""
        future = self._coroutines.start(coroutine)
        if not self.spec.decoupled:
            self._answer(asked, future.result())
            return

        def ended(done: Future[Any]) -> None:
            try:
                self._answer(asked, done.result())
            except Exception as error:
                self._fail(name, error, asked, given)

        future.add_done_callback(ended)

    def _answer(self, asked: list[InferenceRequest], returned: Any) -> None:
        """Send what execute has returned. None: the response senders do, or have done it."""
        if returned is None:
            return
        if self.spec.decoupled:
            raise TritonModelException("execute of a decoupled model must return None")
        if not isinstance(returned, list):
            kind = type(returned).__name__
            raise TritonModelException(f"execute returned {kind}; it must return a list")
        if len(returned) != len(asked):
            raise TritonModelException(
                f"execute returned {len(returned)} responses to {len(asked)} requests"
            )
        for response in returned:
            if response is not None and not isinstance(response, InferenceResponse):
                kind = type(response).__name__
                raise TritonModelException(
                    f"execute returned a list with {kind}; it must hold InferenceResponse objects"
                )
        for request, response in zip(asked, returned, strict=True):
            if response is not None:
                request.get_response_sender().send(response, RESPONSE_COMPLETE_FINAL)

    def _fail(
        self,
        name: str,
        error: Exception,
        asked: list[InferenceRequest],
        given: Sequence[WholeRequest],
    ) -> None:
        """In Triton's words, which clients know."""
        said = (
            f"Failed to process the request(s) for model '{name}', message: "
            f"{loading.described(error)}"
        )
        log.error("%s", said, exc_info=error)
        for request, one in zip(asked, given, strict=True):
            request.get_response_sender().closed = True
            one.respond(None, EngineFailure(said), final=True)


class _Coroutines:
    """An event loop in a thread of its own, begun with the first coroutine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
