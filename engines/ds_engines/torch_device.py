"""Where PyTorch's tensors are, and in which numbers it computes."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ds_engines.base import EngineOptions
from ds_engines.cuda.ledger import Ledger
from ds_engines.errors import Unsupported
from ds_engines.precision import AUTO, BF16, FP16, FP32
from ds_engines.spec import ModelSpec

log = logging.getLogger(__name__)

DTYPES = {FP16: torch.float16, BF16: torch.bfloat16}

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
    # Else whatever names no device, such as pinned memory, would take some of the first GPU's.
    torch.cuda.set_device(index)
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
