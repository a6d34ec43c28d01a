"""ONNX Runtime: ONNX files on the CPU, and on GPUs where its package for them is installed."""

from __future__ import annotations

import ctypes
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnxruntime as ort

from ds_engines import onnxruntime_sizes as sizes
from ds_engines import sparing
from ds_engines.base import DTYPE, MEMORY, NUMERICS, Array, EngineOptions, Tensors, refuse
from ds_engines.batch_axes import complete, example, joined
from ds_engines.config_pbtxt import ACCELERATOR
from ds_engines.errors import EngineFailure, InvalidRequest, LoadError, OutOfMemory, ServeError
from ds_engines.onnxruntime_binding import Binding, Bound, Pinned
from ds_engines.onnxruntime_devices import Choice, choose, refuse_dtype
from ds_engines.onnxruntime_session import (
    DATATYPES,
    first_line,
    fits,
    opened,
    others,
    placed,
    settings,
)
from ds_engines.precision import TOLERANCE
from ds_engines.spec import ModelSpec, TensorSpec

__all__ = ["OnnxRuntimeEngine", "opened"]

log = logging.getLogger(__name__)

BFLOAT16 = 16
"""`TensorProto.DataType.BFLOAT16` of the ONNX format."""


RUNS = "a file as it is; ds-quantize makes one that is quantized"

SLOTS = 3
"""Batches at a time on a GPU, unless the configuration says: while one is computed, others are on
their way.
"""

_FULL = ("out of memory", "failed to allocate memory", "alloc_failed")

_LOST = re.compile(r"(CUDA|HIP) failure (214|220|226|700|702|710|714|715|716|717|718|719|721)\b")
"""With the numbers of errors after which every call of the process fails."""


class _Lane(NamedTuple):
    """A session, and what copies to its device where ONNX Runtime does not do it by itself."""

    session: ort.InferenceSession
    binding: Binding | None


class OnnxRuntimeEngine:
    """One session, or one for each size of batch that ds_engines.onnxruntime_sizes has chosen;
    ONNX Runtime lets many threads run each at once.

    `profile`: where to write the times of layers, which `end_profiling` ends.
    """

    def __init__(
        self, spec: ModelSpec, options: EngineOptions, profile: Path | None = None
    ) -> None:
        refuse(options, "ONNX Runtime", RUNS, DTYPE, MEMORY, NUMERICS)
        there = ort.get_available_providers()
        wanted = choose(options.device, there, spec.parameters.get(ACCELERATOR, ""))
        refuse_dtype(wanted, options.dtype)
        if options.memory_efficient:
            sparing.begin()
        self._session, self.choice = _session(spec, options, wanted, profile)
        if options.memory_efficient:
            sparing.give_back()
        log.info("model %s: ONNX Runtime %s with %s", spec.name, ort.__version__, self.choice)
        self._has_bf16 = False
        self._lane = _Lane(self._session, None)
        self._by_size: dict[int, _Lane] = {}
        self.spec = self._described(spec)
        if self.choice.cuda:
            self._lane = self._lane_of(self._session)
        # What a GPU or 16 bits make of a row may depend on the rows beside it.
        coarse = TOLERANCE.get(options.dtype, 0.02 if self.choice.gpu else 0.0)
        self.spec = complete(self.spec, self, tolerance=coarse)
        if self.spec.batch.max_batch_size and profile is None:
            self._by_size = self._lanes(options)
            self._warm()

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Those to which batches are padded; none where they run as they come."""
        return tuple(self._by_size)

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        names = outputs or tuple(tensor.name for tensor in self.spec.outputs)
        if not self._by_size:
            return self._ran(self._lane, batch, names)
        rows = sizes.rows_of(batch, self.spec.inputs)
        size = sizes.next_of(self.batch_sizes, rows)
        lane = self._by_size.get(size, self._lane)
        if size == rows:
            return self._ran(lane, batch, names)
        fitted = sizes.padded(batch, self.spec.inputs, rows, size)
        return sizes.cut(self._ran(lane, fitted, names), self.spec.outputs, rows, size)

    def _ran(self, lane: _Lane, batch: Tensors, names: Sequence[str]) -> Tensors:
        try:
            if lane.binding is not None:
                return lane.binding.run(batch, names)
            return self.computed(lane.session, batch, names, as_values=self._has_bf16)
        except ServeError:
            raise
        except Exception as error:
            raise _failure(error) from error

    def close(self) -> None:
        for lane in {id(each): each for each in (self._lane, *self._by_size.values())}.values():
            if lane.binding is not None:
                lane.binding.close()
        self._by_size = {}
        del self._session, self._lane

    def end_profiling(self) -> Path:
        """The file with the times, in the format of Chrome's tracing."""
        return Path(self._session.end_profiling())

    def _lanes(self, options: EngineOptions) -> dict[int, _Lane]:
        """A session for each size; the largest gets the one that there is."""
        wanted = sizes.chosen(self.spec, self.choice, options)
        found = sizes.affordable(wanted, lambda more: fits(self.spec, self.choice, more))
        if not found:
            return {}
        if found != wanted:
            log.warning(
                "model %s: batches are padded to %s rows alone, as the weights, which every size "
                "holds again, do not fit more often", self.spec.name, _listed(found),
            )  # fmt: skip
        log.info("model %s: batches are padded to %s rows", self.spec.name, _listed(found))
        again = others(self.spec.artifact, options, self.choice)
        return {size: self._lane_of(next(again)) for size in found[:-1]} | {found[-1]: self._lane}

    def _lane_of(self, session: ort.InferenceSession) -> _Lane:
        return _Lane(session, self._bound(session) if self.choice.cuda else None)

    def _warm(self) -> None:
        """Have each session plan its size now, where a batch can be made up."""
        if any(-1 in _lengths(tensor) for tensor in self.spec.inputs):
            return
        for size in self._by_size:
            try:
                self.run(example(self.spec.inputs, size))
            except EngineFailure as error:
                if error.fatal:
                    raise
                log.warning("model %s: a batch of %d rows: %s", self.spec.name, size, error)

    def _bound(self, session: ort.InferenceSession) -> Binding | None:
        """What copies to the GPU and from it; text and BF16 go by way of ONNX Runtime's values."""
        tensors = (*self.spec.inputs, *self.spec.outputs)
        if any(tensor.datatype in ("BYTES", "BF16") for tensor in tensors):
            return None
        try:
            return Pinned(session, self.choice.number)
        except ImportError:
            log.warning(
                "model %s: tensors are copied without pinned memory, which takes the package "
                "cuda-bindings: pip install 'ds-serve[cuda]'", self.spec.name,
            )  # fmt: skip
            return Bound(session, "cuda", self.choice.number)

    def computed(
        self,
        session: ort.InferenceSession,
        batch: Tensors,
        names: Sequence[str],
        *,
        as_values: bool,
    ) -> Tensors:
        """What a session of this model answers. BF16 has no numpy type, so that it travels as
        values of ONNX Runtime's own; and those cannot be of text.
        """
        given = _strings(batch)
        if not as_values:
            return dict(zip(names, session.run(names, given), strict=True))
        values = {name: self._value(name, array) for name, array in given.items()}
        results = session.run_with_ort_values(names, values)
        return {name: _array(value) for name, value in zip(names, results, strict=True)}

    def _value(self, name: str, array: Array) -> Any:
        tensor = self.spec.input(name)
        if tensor is not None and tensor.datatype == "BF16":
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
        return ort.OrtValue.ortvalue_from_numpy(array)

    def _described(self, spec: ModelSpec) -> ModelSpec:
        inputs = [_tensor(spec, node) for node in self._session.get_inputs()]
        outputs = [_tensor(spec, node) for node in self._session.get_outputs()]
        symbols = {node.name: node.shape for node in self._session.get_inputs()}
        self._has_bf16 = any(tensor.datatype == "BF16" for tensor in (*inputs, *outputs))
        if self._has_bf16:
            _refuse_strings(spec, inputs)
        return msgspec.structs.replace(
            spec,
            platform="onnxruntime_onnx",
            inputs=tuple(joined(inputs, symbols)),
            outputs=tuple(outputs),
            defaulted=self._defaulted(spec),
            slots=SLOTS if self.choice.gpu and spec.slots == 1 else spec.slots,
            accelerated=self.choice.gpu,
        )

    def _defaulted(self, spec: ModelSpec) -> tuple[TensorSpec, ...]:
        """Inputs with an initializer, as older files have them for every weight."""
        unfit = "BYTES" if self._has_bf16 else "BF16"
        found = (
            _tensor(spec, node)
            for node in self._session.get_overridable_initializers()
            if node.type in DATATYPES
        )
        return tuple(tensor for tensor in found if tensor.datatype != unfit)


def _session(
    spec: ModelSpec, options: EngineOptions, wanted: Choice, profile: Path | None
) -> tuple[ort.InferenceSession, Choice]:
    made = settings(options, spec.artifact.parent)
    if profile is not None:
        made.enable_profiling = True
        made.profile_file_prefix = str(profile)
    return placed(spec.artifact, options, wanted, made)


def _tensor(spec: ModelSpec, node: Any) -> TensorSpec:
    if node.type not in DATATYPES:
        raise LoadError(
            f"{spec.artifact}: tensor {node.name!r} is a {node.type}, which cannot be served; "
            f"served are {', '.join(DATATYPES)}"
        )
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(name=node.name, datatype=DATATYPES[node.type], shape=shape)


def _lengths(tensor: TensorSpec) -> tuple[int, ...]:
    """The lengths of all axes but that of rows."""
    return tuple(size for axis, size in enumerate(tensor.shape) if axis != tensor.batch_axis)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _refuse_strings(spec: ModelSpec, inputs: list[TensorSpec]) -> None:
    """ONNX Runtime makes no values of strings, and BF16 models run on values."""
    name = next((tensor.name for tensor in inputs if tensor.datatype == "BYTES"), None)
    if name is not None:
        raise LoadError(
            f"{spec.artifact}: a model with BF16 tensors cannot have an input of strings, as "
            f"{name!r} is: ONNX Runtime takes one or the other from Python"
        )


def _strings(batch: Tensors) -> Tensors:
    """ONNX strings are text: ONNX Runtime takes `str`, and BYTES tensors hold bytes. What lies on a
    GPU is fetched.
    """
    return {
        name: _decoded(name, array) if array.dtype == np.object_ else np.asarray(array)
        for name, array in batch.items()
    }


def _decoded(name: str, array: Array) -> Array:
    decoded = np.empty(array.size, dtype=np.object_)
    try:
        decoded[:] = [bytes(item).decode() for item in array.flat]
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"input {name!r} must be UTF-8, as ONNX strings are text: {error}"
        ) from error
    return decoded.reshape(array.shape)


def _array(value: ort.OrtValue) -> Array:
    if value.element_type() != BFLOAT16:
        array: Array = value.numpy()
        return array
    shape = value.shape()
    memory = (ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr())
    return np.frombuffer(memory, dtype=np.uint16).reshape(shape).copy()


def _failure(error: Exception) -> EngineFailure:
    message = f"ONNX Runtime failed: {first_line(error)}"
    if any(words in message.lower() for words in _FULL):
        return OutOfMemory(message)
    made = EngineFailure(message)
    made.fatal = _LOST.search(str(error)) is not None
    return made
