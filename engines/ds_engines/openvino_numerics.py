"""Every layer's output of a network, by OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ds_engines.base import BatchEngine, EngineOptions, Tensors
from ds_engines.errors import EngineFailure, LoadError
from ds_engines.numerics import Found, Step, counted
from ds_engines.openvino import OpenVINOEngine, readable, said, settings

_REAL = ("f16", "bf16", "f32", "f64")
_HALVES = ("f16", "bf16")


def inspector(engine: BatchEngine, options: EngineOptions) -> _Inspector:
    """See ds_engines.numerics. What is inside of Loop, If and the like is theirs."""
    assert isinstance(engine, OpenVINOEngine), "the registry says so"
    return _Inspector(engine, options)


class _Inspector:
    """The network once more, with the outputs of all its layers."""

    def __init__(self, engine: OpenVINOEngine, options: EngineOptions) -> None:
        spec, core = engine.spec, ov.Core()
        try:
            model = readable(core, spec)
            self._own = len(model.outputs)
            self._names = [tensor.name for tensor in spec.inputs]
            self._inputs = [_key(port.get_node().output(0)) for port in model.inputs]
            self._constants = dict(_constants(model))
            self._layers = list(_layers(model))
            self._places = _shown(model, self._layers)
            self._compiled = core.compile_model(model, "CPU", settings(spec, options))
        except Exception as error:
            raise LoadError(
                f"--debug-numerics: the layers of {spec.artifact} cannot be shown: {said(error)}"
            ) from error

    def run(self, batch: Tensors) -> tuple[Mapping[str, Found], list[Step]]:
        request = self._compiled.create_infer_request()
        given = [np.ascontiguousarray(batch[name]) for name in self._names]
        try:
            request.infer(dict(enumerate(given)), share_inputs=True)
        except Exception as error:
            raise EngineFailure(f"OpenVINO failed: {said(error)}") from error
        found = {
            key: counted(request.get_output_tensor(place).data)
            for key, place in self._places.items()
        }
        known = self._constants | {
            key: counted(array) for key, array in zip(self._inputs, given, strict=True)
        }
        return known, [
            Step(name, op, inputs, {key: found[key] for key in outputs})
            for name, op, inputs, outputs in self._layers
        ]


Layer = tuple[str, str, tuple[str, ...], tuple[str, ...]]
"""Name, operator, and the keys of what goes in and of real numbers that come out."""


def _layers(model: ov.Model) -> Iterator[Layer]:
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Parameter", "Constant", "Result"):
            continue
        inputs = tuple(_key(port.get_source_output()) for port in node.inputs())
        outputs = tuple(
            _key(port) for port in node.outputs() if port.element_type.get_type_name() in _REAL
        )
        if outputs:
            yield node.get_friendly_name(), node.get_type_name(), inputs, outputs


def _constants(model: ov.Model) -> Iterator[tuple[str, Found]]:
    for node in model.get_ordered_ops():
        real = node.get_type_name() == "Constant"
        if real and node.output(0).element_type.get_type_name() in ("f16", "f32", "f64"):
            yield _key(node.output(0)), counted(node.data)


def _shown(model: ov.Model, layers: list[Layer]) -> dict[str, int]:
    """Add an output for each layer's; from key to its place among the outputs."""
    ports = {_key(port): port for node in model.get_ordered_ops() for port in node.outputs()}
    wanted = [key for *_, outputs in layers for key in outputs]
    first = len(model.outputs)
    model.add_results([ops.result(_whole(ports[key])) for key in wanted])
    return {key: first + place for place, key in enumerate(wanted)}


def _whole(port: Any) -> Any:
    """In FP32 where it is of 16 bits: for some of them numpy has no type."""
    halves = port.element_type.get_type_name() in _HALVES
    return ops.convert(port, "f32") if halves else port


def _key(port: Any) -> str:
    """A tensor's name: that of its layer, with its place where that has several."""
    node = port.get_node()
    name: str = node.get_friendly_name()
    return f"{name}:{port.get_index()}" if len(node.outputs()) > 1 else name
