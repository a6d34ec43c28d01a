"""OpenVINO on the CPU: its own networks, and those of TensorFlow, TensorFlow Lite and Paddle."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import openvino as ov
from openvino.preprocess import PrePostProcessor

from ds_engines import sparing
from ds_engines.base import (
    DTYPE,
    MEMORY,
    NUMERICS,
    Array,
    EngineOptions,
    Tensors,
    refuse,
    refuse_devices,
)
from ds_engines.batch_axes import complete, joined
from ds_engines.errors import EngineFailure, LoadError
from ds_engines.precision import AUTO, BF16, FP16, FP32, TOLERANCE
from ds_engines.spec import ModelSpec, TensorSpec

log = logging.getLogger(__name__)

DATATYPES = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
}

PRECISIONS = {AUTO: "f32", FP32: "f32", FP16: "f16", BF16: "bf16"}
"""By itself OpenVINO takes BF16 where the processor has it: answers would depend on the machine."""

_PLACES = ("Exception from ", "Check '", "FrontEnd API failed")

Ports = Sequence[Any]


class OpenVINOEngine:
    """One compiled model; each thread that runs it has an inference request of its own.

    `profiled`: whether it takes the times of layers, which `times` gives.
    """

    def __init__(self, spec: ModelSpec, options: EngineOptions, *, profiled: bool = False) -> None:
        refuse_devices(options, "OpenVINO")
        refuse(options, "OpenVINO", "a model as it is", DTYPE, MEMORY, NUMERICS)
        if options.memory_efficient:
            sparing.begin()
        core = ov.Core()
        model = readable(core, spec)
        self._inputs = _places(spec, model.inputs)
        self._outputs = _places(spec, model.outputs)
        self.spec = _described(spec, model)
        try:
            told = settings(spec, options) | {"PERF_COUNT": profiled}
            self._compiled = core.compile_model(model, "CPU", told)
        except Exception as error:
            raise LoadError(f"OpenVINO cannot compile {spec.artifact}: {said(error)}") from error
        del model
        if options.memory_efficient:
            sparing.give_back()
        taken = _taken(spec, options.dtype, self._compiled)
        self._mine = threading.local()
        # What a batch worked in is freed after it where memory is short: then no other may run.
        self._alone = threading.Lock() if options.memory_efficient else None
        self.spec = complete(self.spec, self, tolerance=TOLERANCE.get(taken, 0.0))

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        names = outputs or tuple(self._outputs)
        given = {self._inputs[name]: np.ascontiguousarray(array) for name, array in batch.items()}
        if self._alone is None:
            return self._inferred(given, names)
        with self._alone:
            found = self._inferred(given, names)
            self._compiled.release_memory()
        return found

    def close(self) -> None:
        del self._compiled, self._mine

    def times(self) -> list[tuple[str, str, float]]:
        """Of the last run in this thread: layers that were run, their kinds, and microseconds."""
        return [
            (layer.node_name, layer.node_type, layer.real_time.total_seconds() * 1e6)
            for layer in self._request().profiling_info
            if layer.status == layer.Status.EXECUTED
        ]

    def _inferred(self, given: dict[int, Array], names: Sequence[str]) -> Tensors:
        request = self._request()
        try:
            request.infer(given, share_inputs=True)
        except Exception as error:
            raise EngineFailure(f"OpenVINO failed: {said(error)}") from error
        # Copied: the request's memory will hold the next answer.
        return {name: request.get_output_tensor(self._outputs[name]).data.copy() for name in names}

    def _request(self) -> Any:
        if not hasattr(self._mine, "request"):
            self._mine.request = self._compiled.create_infer_request()
        return self._mine.request


def settings(spec: ModelSpec, options: EngineOptions) -> dict[str, Any]:
    """What the model is compiled with."""
    streams = 1 if options.memory_efficient else min(spec.slots, options.threads)
    made = {
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": streams,
        # Gateways share these processors.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": PRECISIONS[options.dtype],
    }
    if options.memory_efficient:
        # Else what was made for a shape is kept, for when that comes again.
        made["CPU_RUNTIME_CACHE_CAPACITY"] = 0
    return made


def _taken(spec: ModelSpec, wanted: str, compiled: Any) -> str:
    """What is computed in: where the processor has no FP16 OpenVINO takes BF16, and FP32 where it
    has neither.
    """
    kind = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    taken = next((name for name, hint in PRECISIONS.items() if hint == kind and name != AUTO), kind)
    if wanted not in (AUTO, taken):
        log.warning(
            "model %s: --dtype %s: this processor does not compute in it, so that OpenVINO takes "
            "%s", spec.name, wanted, taken,
        )  # fmt: skip
    elif wanted != AUTO:
        log.info("model %s: computed in %s", spec.name, taken)
    return taken


def readable(core: ov.Core, spec: ModelSpec) -> ov.Model:
    """The model with FP32 in place of BF16 at its ports, for which numpy has no type."""
    # TensorFlow's graph stands for the folder that has the weights too.
    whole = spec.artifact.name == "saved_model.pb"
    try:
        model = core.read_model(spec.artifact.parent if whole else spec.artifact)
    except Exception as error:
        raise LoadError(
            f"{spec.artifact} is not a model that OpenVINO can load: {said(error)}"
        ) from error
    outer = PrePostProcessor(model)
    for index, port in enumerate(model.inputs):
        if port.element_type == ov.Type.bf16:
            outer.input(index).tensor().set_element_type(ov.Type.f32)
    for index, port in enumerate(model.outputs):
        if port.element_type == ov.Type.bf16:
            outer.output(index).tensor().set_element_type(ov.Type.f32)
    return outer.build()


def _described(spec: ModelSpec, model: ov.Model) -> ModelSpec:
    inputs = [_tensor(spec, port) for port in model.inputs]
    outputs = [_tensor(spec, port) for port in model.outputs]
    if not outputs:
        raise LoadError(f"{spec.artifact} is a network without outputs")
    # Axes have no names here, as they may have in ONNX.
    nameless = {tensor.name: tensor.shape for tensor in inputs}
    return msgspec.structs.replace(
        spec,
        platform="openvino",
        inputs=tuple(joined(inputs, nameless)),
        outputs=tuple(outputs),
    )


def _tensor(spec: ModelSpec, port: Any) -> TensorSpec:
    name, kind = _name(port), port.element_type.get_type_name()
    if kind not in DATATYPES:
        raise LoadError(
            f"{spec.artifact}: tensor {name!r} is of {kind}, which cannot be served; served are "
            f"{', '.join(DATATYPES)}"
        )
    if port.partial_shape.rank.is_dynamic:
        raise LoadError(f"{spec.artifact}: tensor {name!r} has no number of axes")
    shape = tuple(-1 if axis.is_dynamic else axis.get_length() for axis in port.partial_shape)
    return TensorSpec(name=name, datatype=DATATYPES[kind], shape=shape)


def _places(spec: ModelSpec, ports: Ports) -> dict[str, int]:
    places = {_name(port): place for place, port in enumerate(ports)}
    if len(places) < len(ports):
        names = [_name(port) for port in ports]
        raise LoadError(f"{spec.artifact} has several tensors of one name: {', '.join(names)}")
    return places


def _name(port: Any) -> str:
    """The shortest of its names; that of its node where the file has none."""
    names: set[str] = port.names
    if names:
        return min(names, key=lambda name: (len(name), name))
    return str(port.node.friendly_name)


def said(error: Exception) -> str:
    """What went wrong, without the places in OpenVINO's source where it was noticed."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(_PLACES)]
    return (told or lines)[0].rstrip(":")
