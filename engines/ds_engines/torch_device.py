"""Where PyTorch's tensors are: the CPU, or a GPU of NVIDIA's or AMD's with its lanes and graphs."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, LifoQueue
from typing import Any, NamedTuple

import torch

from ds_engines.base import EngineOptions
from ds_engines.cuda.ledger import Ledger
from ds_engines.errors import EngineFailure, OutOfMemory, Unsupported
from ds_engines.precision import AUTO, BF16, FP16, FP32
from ds_engines.spec import ModelSpec

log = logging.getLogger(__name__)

DTYPES = {FP16: torch.float16, BF16: torch.bfloat16}

OFTEN = 4
"""Runs of the same shapes after which they are recorded as a graph of their own."""

MOST_GRAPHS = 16

_DEVICE = re.compile(r"(cuda|rocm)(?::(\d+))?")

Named = Mapping[str, torch.Tensor]
Call = Callable[[Named], list[torch.Tensor]]


def find(wanted: str) -> torch.device:
    """The device that `--device` means. Raises Unsupported with what this PyTorch has."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    found = _DEVICE.fullmatch("cuda" if wanted == "auto" else wanted)
    if found is None:
        raise Unsupported(
            f"--device {wanted}: the PyTorch engine runs on cpu, cuda and rocm, or one GPU by its "
            "number, such as cuda:1"
        )
    kind, index = found[1], int(found[2] or 0)
    _require(wanted, kind, index)
    return torch.device("cuda", index)  # as PyTorch calls AMD's too


def _require(wanted: str, kind: str, index: int) -> None:
    built = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "the CPU alone"
    if wanted != "auto" and built != kind:
        raise Unsupported(
            f"--device {wanted}: PyTorch {torch.__version__} is built for {built}; install the one "
            f"for {kind}, as https://pytorch.org/get-started says"
        )
    count = torch.cuda.device_count()
    if index >= count:
        there = f"{kind}:0 to {kind}:{count - 1}" if count else "none that it can use"
        raise Unsupported(f"--device {wanted}: of GPUs PyTorch finds {there}")


def check_room(spec: ModelSpec, device: torch.device) -> None:
    """Raises DoesNotFit where the weights do not fit on a GPU."""
    if device.type == "cpu":
        return
    free, _ = torch.cuda.mem_get_info(device)
    ledger = Ledger(spec.name, title(device), free)
    ledger.need("weights", spec.artifact.stat().st_size)
    ledger.check()


def title(device: torch.device) -> str:
    """Its name for a person."""
    if device.type == "cpu":
        return "the CPU"
    return f"{device} ({torch.cuda.get_device_name(device)})"


class Precision:
    """What `--dtype` makes of a program: autocast to 16 bits where PyTorch's lists have it so, FP32
    proper, or the program as it is.
    """

    def __init__(self, spec: ModelSpec, options: EngineOptions, device: torch.device) -> None:
        self._dtype = DTYPES.get(options.dtype)
        self._device = device.type
        # Weights that were turned into 16 bits are otherwise kept until the run is over; in a graph
        # they must not be, for it would be recorded without the work that makes them.
        self._cached = not options.memory_efficient and device.type == "cpu"
        if options.dtype == FP32:
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        if (
            options.dtype not in (AUTO, FP32)
            and device.type == "cpu"
            and not _native(options.dtype)
        ):
            log.warning(
                "model %s: --dtype %s: this processor does not compute in it: it is slower here "
                "than fp32", spec.name, options.dtype,
            )  # fmt: skip

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """To be entered by the thread that runs the program."""
        if self._dtype is None:
            return contextlib.nullcontext()
        made: contextlib.AbstractContextManager[Any] = torch.autocast(
            self._device, self._dtype, cache_enabled=self._cached
        )
        return made


def _native(dtype: str) -> bool:
    """Whether oneDNN, which multiplies matrices for PyTorch, has instructions for them."""
    return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported")())


class Processor:
    """The CPU: tensors are where they come from."""

    def run(self, call: Call, tensors: Named) -> list[torch.Tensor]:
        return call(tensors)

    def close(self) -> None:
        """Nothing is held."""


class Accelerator:
    """A GPU. Each batch that runs has a lane of its own; as many are made as run at a time.

    `graphs`: whether shapes that come often are recorded, which takes memory.
    """

    def __init__(self, device: torch.device, *, graphs: bool) -> None:
        self._device, self._graphs = device, graphs
        self._lanes: LifoQueue[_Lane] = LifoQueue()

    def run(self, call: Call, tensors: Named) -> list[torch.Tensor]:
        """Answers of the program on the host. Raises OutOfMemory and EngineFailure."""
        torch.cuda.set_device(self._device)
        try:
            lane = self._lanes.get_nowait()
        except Empty:
            lane = _Lane(self._device, graphs=self._graphs)
        try:
            return lane.run(call, tensors)
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfMemory(f"PyTorch failed: {error}") from error
        except RuntimeError as error:
            raise _failure(error) from error
        finally:
            self._lanes.put(lane)

    def close(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._lanes.get_nowait()
        torch.cuda.empty_cache()


def _failure(error: RuntimeError) -> EngineFailure:
    made = EngineFailure(f"PyTorch failed: {str(error).partition(chr(10))[0]}")
    # After one of these CUDA gives the process up.
    made.fatal = any(words in str(error) for words in ("CUDA error", "HIP error"))
    return made


class _Recorded(NamedTuple):
    """A graph works at the addresses that it was recorded with."""

    graph: Any
    inputs: dict[str, torch.Tensor]
    outputs: list[torch.Tensor]


class _Lane:
    """A stream, and graphs by the shapes of inputs, all in one pool of memory: they run one after
    the other.
    """

    def __init__(self, device: torch.device, *, graphs: bool) -> None:
        self._device, self._graphs = device, graphs
        self._stream: Any = torch.cuda.Stream(device)
        self._pool: Any = torch.cuda.graph_pool_handle() if graphs else None
        self._seen: Counter[Any] = Counter()
        self._recorded: dict[Any, _Recorded] = {}

    def run(self, call: Call, tensors: Named) -> list[torch.Tensor]:
        key = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
        pinned = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        with torch.cuda.stream(self._stream):
            answers = self._fetched(self._computed(call, key, pinned))
        self._stream.synchronize()
        self._count(call, key, pinned)
        return answers

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

    def _count(self, call: Call, key: Any, pinned: Named) -> None:
        self._seen[key] += 1
        if self._graphs and self._seen[key] == OFTEN and len(self._recorded) < MOST_GRAPHS:
            self._record(call, key, pinned)

    def _record(self, call: Call, key: Any, pinned: Named) -> None:
        """What cannot be recorded, as it asks the host on its way, goes on as before."""
        inputs = {name: tensor.to(self._device) for name, tensor in pinned.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            with self._recording(graph):
                outputs = call(inputs)
        except RuntimeError as error:
            log.info("no CUDA graph for %s: %s", key, str(error).partition("\n")[0])
            return
        self._recorded[key] = _Recorded(graph, inputs, outputs)

    @contextlib.contextmanager
    def _recording(self, graph: Any) -> Iterator[None]:
        """Other threads may use the GPU meanwhile."""
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            yield
