"""Entry of a worker process: load the engine, then serve it."""

from __future__ import annotations

import logging
import os
import sys
import time

import msgspec
import uvloop

from ds_engines import base, config_pbtxt, torch_archive
from ds_engines.base import BatchEngine
from ds_engines.cuda.ledger import DoesNotFit
from ds_engines.errors import LoadError, ServeError, Unsupported
from ds_engines.reshaping import Reshapes, ReshapingEngine
from ds_engines.spec import ModelSpec
from ds_serve import child, metrics
from ds_serve.repository.admission import admit
from ds_serve.worker.config import WorkerConfig
from ds_serve.worker.warming import warm
from ds_serve.worker.worker import Worker

log = logging.getLogger("ds_serve.worker")

PYTHON, TENSORRT, ONNXRUNTIME, TORCH = "python", "tensorrt", "onnxruntime", "torch"


def load(config: WorkerConfig) -> BatchEngine:
    """The engine with its spec completed, overlaid with config.pbtxt where there is one, and
    warmed up.
    """
    begun = time.monotonic()
    admit(config.spec.name, config.spec.artifact, anyway=config.allow_unverified)
    if config.spec.engine == PYTHON:
        engine = _python_model(config)
    else:
        engine = _described(_loaded(config), config)
    if engine.spec.batch.preserve_ordering and not config.alone:
        raise LoadError(
            f"model {engine.spec.name!r} keeps the order of its answers (preserve_ordering), which "
            "one worker alone can: give it one device"
        )
    warm(engine)
    took = time.monotonic() - begun
    log.info("model %s: loaded in %.2f s (%s)", engine.spec.name, took, _shapes(engine))
    metrics.load_seconds.labels(engine.spec.name, engine.spec.version).set(took)
    return engine


def _loaded(config: WorkerConfig) -> BatchEngine:
    spec, options = _asked(config), config.options
    try:
        return base.load(spec, options)
    except DoesNotFit:
        raise
    except (LoadError, Unsupported) as error:
        if not config.fallback:
            raise
        log.warning(
            "model %s: %s runs it, for %s does not: %s",
            spec.name, config.fallback, spec.engine, error,
        )  # fmt: skip
    spec = msgspec.structs.replace(config.spec, engine=config.fallback)
    return base.load(spec, msgspec.structs.replace(options, device="cpu"))


def _asked(config: WorkerConfig) -> ModelSpec:
    """The spec with what the engine has to know of its configuration before it loads the model."""
    if config.config_file is None or config.spec.engine not in (TENSORRT, ONNXRUNTIME, TORCH):
        return config.spec
    said, source = config_pbtxt.read(config.config_file), str(config.config_file)
    if config.spec.engine == TENSORRT:
        return config_pbtxt.foretold(config.spec, said, source)
    if config.spec.engine == ONNXRUNTIME:
        return config_pbtxt.accelerated(config.spec, said)
    if torch_archive.kind(config.spec.artifact) in torch_archive.CODE:
        return config_pbtxt.described(config.spec, said, source)
    return config.spec


def _described(engine: BatchEngine, config: WorkerConfig) -> BatchEngine:
    if config.config_file is not None:
        overlay = config_pbtxt.read(config.config_file)
        engine.spec = config_pbtxt.apply(
            engine.spec, overlay, str(config.config_file), config.folder
        )
    engine.spec = msgspec.structs.replace(engine.spec, defaulted=())  # no client can name more
    if Reshapes(engine.spec):
        return ReshapingEngine(engine)
    return engine


def _python_model(config: WorkerConfig) -> BatchEngine:
    """A model.py is told its configuration, which alone says what its tensors are."""
    from ds_engines.python_backend.engine import PythonEngine  # noqa: PLC0415 - others need none

    sys.dont_write_bytecode = True  # nothing is ever written to a repository
    said = None if config.config_file is None else config_pbtxt.read(config.config_file)
    return PythonEngine(config.spec, config.options, said, config.config_file, config.folder)


def _shapes(engine: BatchEngine) -> str:
    tensors = ", ".join(f"{t.name} {t.datatype}{list(t.shape)}" for t in engine.spec.inputs)
    size = engine.spec.batch.max_batch_size
    return f"{tensors}; " + (f"batches of up to {size}" if size else "not batched")


async def serve(config: WorkerConfig, engine: BatchEngine) -> bool:
    """Serve until the supervisor says stop; whether the engine has finished."""
    return await Worker(engine, config.identity, config.cache).run(config.socket, config.control)


def main() -> int:
    config = child.begin(sys.argv[1], WorkerConfig)
    try:
        engine = load(config)
    except ServeError as error:
        return child.fail(str(error), permanent=True)
    except Exception as error:
        log.debug("loading failed", exc_info=error)
        return child.fail(f"{config.spec.artifact} could not be loaded: {error}")
    if not uvloop.run(serve(config, engine)):
        os._exit(0)  # the interpreter would wait for the thread that is still in the engine
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
