"""Two ONNX graphs as one: the second runs on the rows of which the first is not sure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

from ds_quantize.errors import MethodError
from ds_quantize.onnx_methods.graph import first_line, opset

ESCALATED = "escalated"
"""The output that says, for each row, whether the large model has answered it."""

LEAST_OPSET = 18
"""The first whose ReduceMax takes its axes as an input."""

UNSURE, ROWS, ANY = "cascade/unsure", "cascade/rows", "cascade/any"


def merged(
    small: onnx.ModelProto, large: onnx.ModelProto, threshold: float, *, probabilities: bool
) -> onnx.ModelProto:
    """One model with the large one's inputs and outputs, and `escalated`, BOOL [rows].

    The first output decides: a row whose best class has a probability of `threshold` or more
    keeps the small model's answer. `probabilities`: the scores are such already. Raises
    MethodError where the two graphs do not fit.
    """
    small, large = _alike(small, large)
    inputs = paired(_names(small.graph.input), _names(large.graph.input))
    outputs = paired(_names(small.graph.output), _names(large.graph.output))
    _require_types(small, large, inputs, outputs)
    inner = compose.add_prefix(large, "large/")
    outer = compose.add_prefix(small, "small/")
    graph = helper.make_graph(
        [
            *(_node("Identity", [name], [f"small/{own}"]) for own, name in inputs.items()),
            *outer.graph.node,
            *_decision(outer.graph.output[0].name, probabilities),
            _choice(inner.graph, outputs, _names(large.graph.input)),
        ],
        "cascade",
        large.graph.input,
        [*large.graph.output, helper.make_tensor_value_info(ESCALATED, TensorProto.BOOL, ["rows"])],
        [*outer.graph.initializer, *_constants(threshold, outer.graph.output[0])],
    )
    made = helper.make_model(
        graph,
        opset_imports=_imports(small, large),
        ir_version=max(small.ir_version, large.ir_version),
        functions=[*outer.functions, *inner.functions],
        producer_name="ds-quantize",
    )
    _share_rows(made)
    return made


def paired(own: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Names of tensors to those of the other model: the same name, or else the same place.

    Raises MethodError where the numbers differ.
    """
    if len(own) != len(theirs):
        raise MethodError(f"cascade: one model has {list(own)}, and the other {list(theirs)}")
    if set(own) == set(theirs):
        return {name: name for name in own}
    return dict(zip(own, theirs, strict=True))


def _decision(scores: str, probabilities: bool) -> list[onnx.NodeProto]:
    """Which rows the small model is not sure of."""
    softened = scores if probabilities else "cascade/probabilities"
    soften = [] if probabilities else [_node("Softmax", [scores], [softened], axis=-1)]
    return [
        *soften,
        _node("ReduceMax", [softened, "cascade/last"], ["cascade/sure"], keepdims=0),
        _node("Less", ["cascade/sure", "cascade/threshold"], [UNSURE]),
        _node("Identity", [UNSURE], [ESCALATED]),
        _node("NonZero", [UNSURE], ["cascade/found"]),
        _node("Reshape", ["cascade/found", "cascade/flat"], [ROWS]),
        _node("Size", [ROWS], ["cascade/count"]),
        _node("Greater", ["cascade/count", "cascade/none"], [ANY]),
    ]


def _choice(
    large: onnx.GraphProto, outputs: dict[str, str], inputs: Sequence[str]
) -> onnx.NodeProto:
    """The large model's answers in their rows, or the small one's alone."""
    results = [f"then/{name}" for name in outputs.values()]
    asked = helper.make_graph(
        [
            *(_node("Gather", [name, ROWS], [f"large/{name}"], axis=0) for name in inputs),
            *large.node,
            _node("Reshape", [ROWS, "cascade/column"], ["large/rows"]),
            *(
                _node("ScatterND", [f"small/{own}", "large/rows", f"large/{name}"], [result])
                for (own, name), result in zip(outputs.items(), results, strict=True)
            ),
        ],
        "large",
        [],
        [
            _renamed(large, name, result)
            for name, result in zip(outputs.values(), results, strict=True)
        ],
        large.initializer,
    )
    spared = helper.make_graph(
        [_node("Identity", [f"small/{own}"], [f"else/{name}"]) for own, name in outputs.items()],
        "small",
        [],
        [_renamed(large, name, f"else/{name}") for name in outputs.values()],
    )
    return _node("If", [ANY], list(outputs.values()), then_branch=asked, else_branch=spared)


def _renamed(graph: onnx.GraphProto, name: str, to: str) -> onnx.ValueInfoProto:
    """What the large graph says of an output, under another name."""
    value = onnx.ValueInfoProto()
    value.CopyFrom(next(each for each in graph.output if each.name == f"large/{name}"))
    value.name = to
    return value


def _constants(threshold: float, scores: onnx.ValueInfoProto) -> list[onnx.TensorProto]:
    real = helper.tensor_dtype_to_np_dtype(scores.type.tensor_type.elem_type)
    return [
        numpy_helper.from_array(np.array(threshold, real), "cascade/threshold"),
        numpy_helper.from_array(np.array([-1]), "cascade/last"),
        numpy_helper.from_array(np.array([-1]), "cascade/flat"),
        numpy_helper.from_array(np.array([-1, 1]), "cascade/column"),
        numpy_helper.from_array(np.array(0), "cascade/none"),
    ]


def _node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, outputs, f"cascade/{kind}/{outputs[0]}", **attributes)


def _names(values: Sequence[onnx.ValueInfoProto]) -> list[str]:
    return [value.name for value in values]


def _alike(
    small: onnx.ModelProto, large: onnx.ModelProto
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Both of the same version of the standard operators."""
    wanted = max(opset(small), opset(large), LEAST_OPSET)
    return _converted(small, wanted, "small"), _converted(large, wanted, "large")


def _converted(model: onnx.ModelProto, wanted: int, which: str) -> onnx.ModelProto:
    if opset(model) == wanted:
        return model
    try:
        return version_converter.convert_version(model, wanted)
    except Exception as error:
        raise MethodError(
            f"cascade: the {which} model is of opset {opset(model)} and cannot be brought to "
            f"{wanted}: {first_line(error)}"
        ) from error


def _imports(*models: onnx.ModelProto) -> list[onnx.OperatorSetIdProto]:
    found: dict[str, int] = {}
    for model in models:
        for each in model.opset_import:
            if found.setdefault(each.domain, each.version) != each.version:
                raise MethodError(
                    f"cascade: the models use versions {found[each.domain]} and {each.version} of "
                    f"the operators {each.domain}"
                )
    return [helper.make_opsetid(domain, version) for domain, version in found.items()]


def _require_types(
    small: onnx.ModelProto,
    large: onnx.ModelProto,
    inputs: dict[str, str],
    outputs: dict[str, str],
) -> None:
    pairs = ((small.graph.input, large.graph.input, inputs),
             (small.graph.output, large.graph.output, outputs))  # fmt: skip
    for own, theirs, names in pairs:
        kinds = {value.name: value.type.tensor_type.elem_type for value in theirs}
        for value in own:
            kind, other = value.type.tensor_type.elem_type, kinds[names[value.name]]
            if kind != other:
                raise MethodError(
                    f"cascade: {value.name!r} of the small model is "
                    f"{TensorProto.DataType.Name(kind)}, and {names[value.name]!r} of the large "
                    f"one {TensorProto.DataType.Name(other)}"
                )


def _share_rows(model: onnx.ModelProto) -> None:
    """One name for the first axis of all inputs and outputs."""
    for value in (*model.graph.input, *model.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        dim.dim_param = "rows"
