"""PyTorch's files that hold code: TorchScript, and what AOTInductor has compiled.

Neither says what its tensors are: config.pbtxt does. Names of inputs and outputs are those of the
file, or end in their place, as in `INPUT__0`, which is how Triton's models have it; else they are
in the file's order.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.utils import _pytree as trees

from ds_engines.base import EngineOptions
from ds_engines.errors import EngineFailure, LoadError, Unsupported
from ds_engines.precision import AUTO
from ds_engines.spec import ModelSpec, TensorSpec
from ds_engines.torch_archive import compiled_for, refuse_untrusted
from ds_engines.torch_program import DATATYPES, names_of, said

CHECKED = "AOTI_RUNTIME_CHECK_INPUTS"
"""Has compiled code look at its inputs: without it, a wrong shape reads memory of others."""

_PLACE = re.compile(r".*__(\d+)")


class Script:
    """TorchScript: a module that PyTorch's own interpreter runs."""

    def __init__(self, spec: ModelSpec, device: torch.device, options: EngineOptions) -> None:
        refuse_untrusted(spec.artifact, "torchscript", options.trust)
        _require_tensors(spec)
        self.spec = msgspec.structs.replace(spec, platform="pytorch_libtorch")
        try:
            with warnings.catch_warnings(action="ignore"):  # that TorchScript is of the past
                self._module = torch.jit.load(spec.artifact, map_location=device).eval()
            names = [one.name for one in self._module.forward.schema.arguments[1:]]
        except Exception as error:
            raise LoadError(
                f"{spec.artifact} is not TorchScript that PyTorch {torch.__version__} can load: "
                f"{said(error)}"
            ) from error
        self._inputs = _arguments_of(spec, names)
        self._outputs = _placed(spec, spec.outputs, [], "output")

    def call(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        result = self._module(*(tensors[name] for name in self._inputs))
        if isinstance(result, dict):
            missing = [tensor.name for tensor in self.spec.outputs if tensor.name not in result]
            if missing:
                raise EngineFailure(
                    f"the model gives no output {missing[0]!r}, but {', '.join(result)}"
                )
            return [result[tensor.name] for tensor in self.spec.outputs]
        return _named(self.spec, self._outputs, trees.tree_leaves(result))


class Compiled:
    """A package of AOTInductor: a library of machine code, with its weights."""

    def __init__(self, spec: ModelSpec, device: torch.device, options: EngineOptions) -> None:
        refuse_untrusted(spec.artifact, "aotinductor", options.trust)
        if options.dtype != AUTO:
            raise Unsupported(
                f"--dtype {options.dtype}: {spec.artifact} is compiled for the numbers that it has"
            )
        _require_machine(spec, device)
        _require_tensors(spec)
        self.spec = msgspec.structs.replace(spec, platform="pytorch_aotinductor")
        self._model = _package(spec, device)
        takes, gives = (trees.treespec_loads(each) for each in self._model.loader.get_call_spec())
        self._inputs = _arguments_of(spec, list(_arguments(takes)))
        self._outputs = _placed(spec, spec.outputs, names_of(gives), "output")
        self._fewest = 1

    def call(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        given = [tensors[name].contiguous() for name in self._inputs]
        batched = bool(self.spec.batch.max_batch_size)
        rows = len(given[0]) if batched else 0
        if batched and rows < self._fewest:
            return self._padded(given, rows)
        try:
            return self._run(given)
        except RuntimeError:
            # For most programs code is made that takes two rows or more.
            if rows != 1:
                raise
        found = self._padded(given, rows)
        self._fewest = 2
        return found

    def _padded(self, given: list[torch.Tensor], rows: int) -> list[torch.Tensor]:
        twice = [torch.cat([each, each]) for each in given]
        return [each[:rows] for each in self._run(twice)]

    def _run(self, given: list[torch.Tensor]) -> list[torch.Tensor]:
        # It empties the list that it is given.
        return _named(self.spec, self._outputs, self._model.loader.boxed_run(list(given)))


def _package(spec: ModelSpec, device: torch.device) -> Any:
    """The package, which PyTorch wants to be called .pt2."""
    from torch._inductor.package import load_package  # noqa: PLC0415 - it takes a second

    os.environ[CHECKED] = "1"
    index = -1 if device.type == "cpu" else device.index or 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.pt2")
            file.symlink_to(spec.artifact.absolute())
            return load_package(str(file), num_runners=max(1, spec.slots), device_index=index)
    except Exception as error:
        raise LoadError(
            f"{spec.artifact} is not a package that PyTorch {torch.__version__} can load: "
            f"{said(error)}"
        ) from error


def _require_machine(spec: ModelSpec, device: torch.device) -> None:
    for what, wanted, here in compiled_for(spec.artifact, device.type):
        raise LoadError(
            f"{spec.artifact} was compiled for the {what} {wanted}, and this is {here}; compile it "
            "anew, or give what torch.export saved"
        )


def _require_tensors(spec: ModelSpec) -> None:
    for what, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        if not tensors:
            raise LoadError(
                f"{spec.artifact} does not say what its {what} are: name them, with data_type and "
                "dims, in a config.pbtxt in the model's folder"
            )
        for tensor in tensors:
            if tensor.datatype not in DATATYPES.values():
                raise LoadError(
                    f"{spec.artifact}: tensor {tensor.name!r} is of {tensor.datatype}, which "
                    f"PyTorch has not; served are {', '.join(DATATYPES.values())}"
                )


def _arguments(takes: trees.TreeSpec) -> Iterator[str]:
    """Names of what a program is called with: those given by keyword have one."""
    places = trees.tree_unflatten(range(takes.num_leaves), takes)
    for path, _ in trees.tree_flatten_with_path(places)[0]:
        last = path[-1]
        yield str(getattr(last, "key", f"input_{getattr(last, 'idx', 0)}"))


def _placed(
    spec: ModelSpec, tensors: Sequence[TensorSpec], own: list[str], what: str
) -> dict[str, int]:
    """The configuration's names to their places in the file, which calls them `own` if it has names
    for them. Raises LoadError.
    """
    names = [tensor.name for tensor in tensors]
    if own and len(names) > len(own):
        raise LoadError(
            f"{spec.artifact} has {len(own)} {what}s ({', '.join(own)}), and its configuration "
            f"names {len(names)}: {', '.join(names)}"
        )
    if set(names) <= set(own):
        return {name: own.index(name) for name in names}
    if all(_PLACE.fullmatch(name) for name in names):
        return {name: int(name.rpartition("__")[2]) for name in names}
    return {name: place for place, name in enumerate(names)}


def _arguments_of(spec: ModelSpec, own: list[str]) -> list[str]:
    """Names of inputs in the order in which the file takes them. Raises LoadError."""
    places = _placed(spec, spec.inputs, own, "input")
    if sorted(places.values()) != list(range(len(places))):
        raise LoadError(
            f"{spec.artifact} takes {', '.join(own) or 'its inputs'} in this order, and its "
            f"configuration leaves some out: it names {', '.join(places)}"
        )
    return sorted(places, key=lambda name: places[name])


def _named(spec: ModelSpec, places: Mapping[str, int], results: list[Any]) -> list[torch.Tensor]:
    """In the order of the spec's outputs."""
    for name, place in places.items():
        if place >= len(results):
            raise EngineFailure(
                f"the model gives {len(results)} outputs, and output {name!r} of its configuration "
                f"would be number {place + 1}"
            )
    return [results[places[tensor.name]] for tensor in spec.outputs]
