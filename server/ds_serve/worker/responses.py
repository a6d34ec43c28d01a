"""The response cache of one model: equal requests are answered without the engine."""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Any

from ds_engines.spec import ModelSpec
from ds_serve.scheduler.cache import Cache
from ds_serve.tracing import IN_WORKER
from ds_serve.transport.messages import Answer, Infer, InRegion, Tensor
from ds_serve.worker.accounts import Accounts
from ds_serve.worker.budget import SharedBudget
from ds_serve.worker.config import CacheConfig
from ds_serve.worker.work import Job

log = logging.getLogger(__name__)

Outputs = tuple[tuple[str, str, tuple[int, ...], bytes], ...]
Kept = tuple[Outputs, dict[str, Any] | None]

OVERHEAD = 512
"""Bytes that an answer of no bytes is counted with: so many small ones are bounded too."""


class Responses:
    """Answers by a strong hash of all that they depend on."""

    def __init__(self, spec: ModelSpec, budget: SharedBudget, accounts: Accounts) -> None:
        self._outputs = tuple(sorted(tensor.name for tensor in spec.public.outputs))
        self._budget = budget
        self._cache: Cache[Kept] = Cache(budget)
        self._accounts = accounts

    def find(self, request: Infer) -> Answer | bytes:
        """The answer to an equal request, or the key under which to keep this one's."""
        begun = time.monotonic_ns()
        key = key_of(request, self._outputs)
        kept = self._cache.get(key)
        took = time.monotonic_ns() - begun
        if kept is None:
            self._accounts.missed(took)
            return key
        self._accounts.hit(took, request)
        tensors, said = kept
        outputs = [
            Tensor(name, kind, shape, memoryview(data)) for name, kind, shape, data in tensors
        ]
        times = (begun,) * len(IN_WORKER) if request.traced else ()
        return Answer(request.id, outputs, times=times, parameters=said)

    def keep(self, jobs: list[Job]) -> None:
        """Of jobs that have been run, the answers that are no faults."""
        begun = time.monotonic_ns()
        for job in jobs:
            if job.cache_key and job.answer is not None and job.answer.fault is None:
                outputs, said = tuple(map(_copied, job.answer.outputs)), job.answer.parameters
                size = OVERHEAD + sum(len(one[3]) for one in outputs)
                size += len(repr(said)) if said else 0
                self._cache.put(job.cache_key, (outputs, said), size)
        self._accounts.missed(time.monotonic_ns() - begun, count=0)

    def trim(self) -> None:
        """Give bytes back that other models' caches are due."""
        self._cache.trim()

    def close(self) -> None:
        self._budget.close()


def key_of(request: Infer, outputs: tuple[str, ...]) -> bytes:
    """A strong hash of all that the answer depends on. `outputs`: names of all that there are."""
    if any(isinstance(place, InRegion) for place in request.places):
        _take_over(request)
    wanted = tuple(sorted(request.outputs)) or outputs
    made = hashlib.sha256(repr((request.partition, wanted)).encode())
    for tensor in sorted(request.inputs, key=_name):
        assert isinstance(tensor.data, memoryview), "it was found"
        about = (tensor.name, tensor.datatype, tensor.shape, len(tensor.data))
        made.update(repr(about).encode())
        made.update(tensor.data)
    return made.digest()


def responses(spec: ModelSpec, config: CacheConfig | None, accounts: Accounts) -> Responses | None:
    """The model's cache, where it wants one and the server has one."""
    if not spec.cached:
        return None
    if config is None:
        log.warning(
            "model %s: response_cache is enabled, but the server has no cache: it is given one "
            "by --response-cache-byte-size",
            spec.name,
        )
        return None
    try:
        return Responses(spec, SharedBudget(config.file, config.size), accounts)
    except OSError as error:
        log.warning("model %s: its responses are not cached: %s", spec.name, error)
        return None


def _name(tensor: Tensor) -> str:
    return tensor.name


def _take_over(request: Infer) -> None:
    """What lies in a client's memory may change while it is run: then it is not what was hashed."""
    for tensor in request.inputs:
        assert isinstance(tensor.data, memoryview), "it was found"
        tensor.data = memoryview(bytes(tensor.data))


def _copied(tensor: Tensor) -> tuple[str, str, tuple[int, ...], bytes]:
    assert isinstance(tensor.data, memoryview), "it was not sent yet"
    return tensor.name, tensor.datatype, tensor.shape, bytes(tensor.data)
