"""Batches on a GPU of NVIDIA's or AMD's by PyTorch: each in a lane of its own, with its graphs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter
from queue import Empty, LifoQueue
from typing import Any, NamedTuple

import torch

from ds_engines.cuda.turns import Turns
from ds_engines.errors import EngineFailure, OutOfMemory
from ds_engines.torch_device import Call, Named
from ds_engines.torch_program import said

log = logging.getLogger(__name__)

OFTEN = 4
"""Runs of the same shapes after which they are recorded as a graph of their own."""

MOST_GRAPHS = 16


class Accelerator:
    """A GPU. Each batch that runs has a lane of its own; as many are made as run at a time.

    `graphs`: whether shapes that come often are recorded, which takes memory.
    """

    def __init__(self, device: torch.device, *, graphs: bool) -> None:
        self._device, self._graphs = device, graphs
        self._lanes: LifoQueue[_Lane] = LifoQueue()
        self._turns = Turns()

    def run(self, call: Call, tensors: Named) -> list[torch.Tensor]:
        """Answers of the program on the host. Raises OutOfMemory and EngineFailure."""
        torch.cuda.set_device(self._device)
        lane = self._lane()
        try:
            with self._turns.together():
                answers = lane.run(call, tensors)
            if self._graphs and lane.often(tensors):
                with self._turns.alone():
                    self._graphs = lane.record(call, tensors) and self._graphs
        except RuntimeError as error:
            raise self._failure(error, lane) from error
        finally:
            self._lanes.put(lane)
        return answers

    def close(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._lanes.get_nowait()
        torch.cuda.empty_cache()

    def _lane(self) -> _Lane:
        try:
            return self._lanes.get_nowait()
        except Empty:
            return _Lane(self._device)

    def _failure(self, error: RuntimeError, lane: _Lane) -> EngineFailure:
        message = f"PyTorch failed: {said(error)}"
        with self._turns.together():
            if _is_full(error):
                torch.cuda.empty_cache()
                return OutOfMemory(message)
            made = EngineFailure(message)
            made.fatal = lane.lost()
            return made


def _is_full(error: RuntimeError) -> bool:
    """Whether memory was short: PyTorch's own error, its interpreter's, or a library's of CUDA."""
    words = str(error).lower()
    return (
        isinstance(error, torch.cuda.OutOfMemoryError)
        or "out of memory" in words
        or "alloc_failed" in words
    )


class _Recorded(NamedTuple):
    """A graph works at the addresses that it was recorded with."""

    graph: Any
    inputs: dict[str, torch.Tensor]
    outputs: list[torch.Tensor]


class _Lane:
    """A stream, and graphs by the shapes of inputs, all in one pool of memory: they run one after
    the other.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._seen: Counter[Any] = Counter()
        self._recorded: dict[Any, _Recorded] = {}

    def run(self, call: Call, tensors: Named) -> list[torch.Tensor]:
        pinned = {
            name: tensor if tensor.is_cuda else tensor.pin_memory()
            for name, tensor in tensors.items()
        }
        with torch.cuda.stream(self._stream):
            answers = self._fetched(self._computed(call, _shapes(tensors), pinned))
        self._stream.synchronize()
        return answers

    def lost(self) -> bool:
        """Whether CUDA has given the process up, so that every call fails."""
        try:
            self._stream.synchronize()
        except RuntimeError:
            return True
        return False

    def _computed(self, call: Call, key: Any, pinned: Named) -> list[torch.Tensor]:
        recorded = self._recorded.get(key)
        if recorded is None:
            there = {name: t.to(self._device, non_blocking=True) for name, t in pinned.items()}
            return call(there)
        for name, tensor in pinned.items():
            recorded.inputs[name].copy_(tensor, non_blocking=True)
        recorded.graph.replay()
        return recorded.outputs

    @staticmethod
    def _fetched(results: list[torch.Tensor]) -> list[torch.Tensor]:
        places = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in results]
        for place, each in zip(places, results, strict=True):
            place.copy_(each, non_blocking=True)
        return places

    def often(self, tensors: Named) -> bool:
        """Whether these shapes are to be recorded now: told once for each."""
        key = _shapes(tensors)
        if key in self._recorded or len(self._recorded) >= MOST_GRAPHS:
            return False
        self._seen[key] += 1
        return self._seen[key] == OFTEN

    def record(self, call: Call, tensors: Named) -> bool:
        """Make a graph for these shapes, while no other lane runs. False for what cannot be
        recorded, as it asks the host on its way; it goes on as before.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self._stream):
                # Copies, for a tensor may be on the device already, and a client's.
                inputs = {name: each.to(self._device, copy=True) for name, each in tensors.items()}
                _require_alone(call, inputs)
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    outputs = call(inputs)
        except Exception as error:
            log.info("no CUDA graphs, for %s: %s", _shapes(tensors), said(error))
            self._mend()
            return False
        self._recorded[_shapes(tensors)] = _Recorded(graph, inputs, outputs)
        return True

    def _mend(self) -> None:
        """PyTorch's allocator believes that a recording goes on which failed, and then can free
        nothing.
        """
        with contextlib.suppress(Exception):
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)


def _shapes(tensors: Named) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())


def _require_alone(call: Call, inputs: Named) -> None:
    """Raises RuntimeError for what waits for the GPU on its way. A recording notices that too, but
    fails in a state from which PyTorch does not recover by itself.
    """
    with warnings.catch_warnings(action="ignore"):  # that it does not notice everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        call(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
