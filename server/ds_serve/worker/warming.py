"""Runs a model's warm-ups: what is slow once is slow before the first client comes."""

from __future__ import annotations

import logging
import time

from ds_engines.base import BatchEngine
from ds_engines.errors import LoadError, ServeError
from ds_serve.worker.inputs import warm_up_batch

log = logging.getLogger("ds_serve.worker")


def warm(engine: BatchEngine) -> None:
    """Raises LoadError naming the warm-up that fails."""
    spec = engine.spec
    for warm_up in spec.warm_ups:
        begun = time.monotonic()
        try:
            batch = warm_up_batch(spec, warm_up)
            for _ in range(warm_up.count):
                engine.run(batch)
        except ServeError as error:
            raise LoadError(
                f"model {spec.name!r}: its warm-up {warm_up.name!r} failed: {error}"
            ) from error
        log.info(
            "model %s: warm-up %s: %d rows, %d times, %.2f s",
            spec.name, warm_up.name, warm_up.batch_size, warm_up.count, time.monotonic() - begun,
        )  # fmt: skip
