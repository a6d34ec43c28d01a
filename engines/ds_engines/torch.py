"""PyTorch: programs of torch.export and, for those who trust them, files that hold code."""

from __future__ import annotations

import logging
from typing import Protocol

import msgspec
import numpy as np
import torch

from ds_engines import sparing
from ds_engines.base import DTYPE, MEMORY, NUMERICS, Array, EngineOptions, Tensors, refuse
from ds_engines.batch_axes import complete
from ds_engines.cuda.foreign import DeviceArray
from ds_engines.errors import EngineFailure, ServeError
from ds_engines.precision import TOLERANCE
from ds_engines.spec import ModelSpec
from ds_engines.torch_archive import kind
from ds_engines.torch_device import Named, Precision, Processor, check_room, find, title
from ds_engines.torch_lanes import Accelerator
from ds_engines.torch_program import DATATYPES, Exported, said

log = logging.getLogger(__name__)

SLOTS = 3
"""Batches at a time on a GPU, unless the configuration says: while one is computed, others are on
their way.
"""

_TORCH = {name: kind for kind, name in DATATYPES.items()}


class Program(Protocol):
    """A file of PyTorch's, loaded."""

    spec: ModelSpec

    def call(self, tensors: Named) -> list[torch.Tensor]:
        """Its answers, in the order of the spec's outputs."""


class TorchEngine:
    """One program, which many threads may call."""

    def __init__(self, spec: ModelSpec, options: EngineOptions) -> None:
        refuse(options, "PyTorch", "a program as it is", DTYPE, MEMORY, NUMERICS)
        torch.set_num_threads(options.threads)
        if options.memory_efficient:
            sparing.begin()
        self.device = find(options.device)
        check_room(spec, self.device)
        self.precision = Precision(spec, options, self.device)
        self.program = _loaded(self._placed(spec), self.device, options)
        if options.memory_efficient:
            sparing.give_back()
        log.info("model %s: PyTorch %s on %s", spec.name, torch.__version__, title(self.device))
        self.spec = self.program.spec
        self._place = self._processor(options)
        coarse = TOLERANCE.get(options.dtype, 0.02 if self.spec.accelerated else 0.0)
        self.spec = complete(self.spec, self, tolerance=coarse)

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        tensors = self.tensors(batch)
        try:
            with torch.inference_mode(), self.precision.active():
                results = self._place.run(self.program.call, tensors)
        except ServeError:
            raise
        except Exception as error:
            raise EngineFailure(f"PyTorch failed: {said(error)}") from error
        named = zip(self.spec.outputs, results, strict=True)
        return {
            tensor.name: _array(result, tensor.datatype)
            for tensor, result in named
            if not outputs or tensor.name in outputs
        }

    def close(self) -> None:
        self._place.close()
        del self.program

    def tensors(self, batch: Tensors) -> dict[str, torch.Tensor]:
        """Those of the inputs, on the host and with the types that the program takes."""
        return {
            tensor.name: _tensor(batch[tensor.name], tensor.datatype, self.device)
            for tensor in self.program.spec.inputs
        }

    def _placed(self, spec: ModelSpec) -> ModelSpec:
        """With as many slots as the device has, which files that are compiled are told."""
        if self.device.type == "cpu":
            return spec
        slots = SLOTS if spec.slots == 1 else spec.slots
        return msgspec.structs.replace(spec, slots=slots, accelerated=True)

    def _processor(self, options: EngineOptions) -> Processor | Accelerator:
        if self.device.type == "cpu":
            return Processor()
        # What shows a program's layers uses the GPU beside the engine, which no recording allows.
        alone = not (options.memory_efficient or options.debug_numerics)
        return Accelerator(self.device, graphs=alone and isinstance(self.program, Exported))


def _loaded(spec: ModelSpec, device: torch.device, options: EngineOptions) -> Program:
    from ds_engines.torch_code import Compiled, Script  # noqa: PLC0415 - most files are none

    match kind(spec.artifact):
        case "torchscript":
            return Script(spec, device, options)
        case "aotinductor":
            return Compiled(spec, device, options)
    return Exported(spec, device, options.dtype)


def _tensor(array: Array | DeviceArray, datatype: str, device: torch.device) -> torch.Tensor:
    if isinstance(array, DeviceArray) and device.type == "cuda":
        tensor = torch.as_tensor(array, device=f"cuda:{array.number}").to(device)
    else:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.view(torch.bfloat16) if datatype == "BF16" else tensor


def _array(result: torch.Tensor, datatype: str) -> Array:
    """With the type that clients are told, which autocast may have changed."""
    whole = result.to(_TORCH[datatype]) if result.is_floating_point() else result
    bits = whole.view(torch.uint16) if whole.dtype == torch.bfloat16 else whole
    array: Array = bits.numpy()
    return array
