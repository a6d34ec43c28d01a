"""The layers of a built plan: what runs, and in which types."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

_TYPES = {
    "int8": "INT8",
    "half": "FP16",
    "fp16": "FP16",
    "float": "FP32",
    "fp32": "FP32",
    "bfloat16": "BF16",
    "bf16": "BF16",
    "fp8": "FP8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
    "int4": "INT4",
    "fp4": "FP4",
}
_WORD = re.compile(r"[A-Za-z]+\d*")
_TENSOR = re.compile(r"Datatype: *([^,}]+)|Format/Datatype: *([^,}\]]+)")
_NAME = re.compile(r"^Name: (.*?), LayerType: ([^,]*),")
_SECTION = re.compile(r"(Inputs|Outputs|Constants): \[")


class PlanLayer(msgspec.Struct, frozen=True):
    """One kernel, or a few, made of one or more of the network's layers. `inputs`, `constants` and
    `outputs` are the types of its tensors, as KServe calls them where it has a name. `sources` are
    names of the layers in the ONNX file that it was made of, where TensorRT says them.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


def inspected(library: Any, engine: Any) -> tuple[PlanLayer, ...]:
    """The layers of an engine, by TensorRT's own inspector. Types are there if the plan was built
    with them, as ours are.
    """
    form = library.api.LayerInformationFormat.JSON
    found = json.loads(engine.create_engine_inspector().get_engine_information(form))
    return tuple(_of_json(layer) for layer in found.get("Layers", ()))


def told(message: str) -> tuple[PlanLayer, ...]:
    """Those that a builder lists in its log, in lines that begin with their name."""
    return tuple(_of_line(line) for line in message.splitlines() if _NAME.match(line))


def _of_json(layer: Any) -> PlanLayer:
    if not isinstance(layer, Mapping):
        return PlanLayer(str(layer), "")  # a plan with names alone
    return PlanLayer(
        name=str(layer.get("Name", "")),
        kind=str(layer.get("LayerType", "")),
        inputs=_listed(layer.get("Inputs")),
        constants=_listed(layer.get("Constants")) or _weights(layer),
        outputs=_listed(layer.get("Outputs")),
        sources=_sources(str(layer.get("Metadata", ""))),
    )


def _listed(tensors: Any) -> tuple[str, ...]:
    if not isinstance(tensors, list):
        return ()
    return tuple(_type(str(t.get("Datatype") or t.get("Format/Datatype", ""))) for t in tensors)


def _weights(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """Release 8 gives a layer's weights a field of their own."""
    weights = layer.get("Weights")
    return (_type(str(weights.get("Type", ""))),) if isinstance(weights, Mapping) else ()


def _of_line(line: str) -> PlanLayer:
    head = _NAME.match(line)
    assert head is not None, "only such lines are read"
    types: dict[str, tuple[str, ...]] = {}
    for section in _SECTION.finditer(line):
        types[section[1]] = tuple(
            _type(found[1] or found[2]) for found in _TENSOR.finditer(_upto(line, section.end()))
        )
    return PlanLayer(
        name=head[1],
        kind=head[2],
        inputs=types.get("Inputs", ()),
        constants=types.get("Constants", ()),
        outputs=types.get("Outputs", ()),
        sources=_sources(line),
    )


def _upto(line: str, start: int) -> str:
    """From there to the bracket that closes it."""
    depth = 1
    for at in range(start, len(line)):
        depth += {"[": 1, "]": -1}.get(line[at], 0)
        if not depth:
            return line[start:at]
    return line[start:]


def _type(said: str) -> str:
    """The first word that is a type's: formats stand beside it in older releases."""
    words = (_TYPES.get(word.lower()) for word in _WORD.findall(said))
    return next((word for word in words if word), said.strip())


def _sources(said: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", said))
