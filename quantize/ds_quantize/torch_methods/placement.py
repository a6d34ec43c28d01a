"""Which tensors of an exported graph are rounded to INT8 in training, and how.

Each convolution and linear layer takes rounded inputs and weights. For ONNX Runtime, which runs
an operator in integers where its output is rounded too, so are the outputs, after an activation
that can be fused, and additions and max pools between such layers; activations are unsigned with
a zero point, which makes ReLU part of the rounding. TensorRT wants zero points of 0, biases in
floating point, and fuses by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from ds_quantize.methods.torch import Target
from ds_quantize.torch_methods.fuse import CONVOLUTIONS, operator, owner
from ds_quantize.torch_methods.modules import excluded
from ds_quantize.torch_methods.quiet import quiet

with quiet():
    from torchao.quantization.pt2e import (
        FusedMovingAvgObsFakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
    )
    from torchao.quantization.pt2e.quantizer import (
        DerivedQuantizationSpec,
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )

LAYERS = (*CONVOLUTIONS, "linear")
ACTIVATIONS = ("relu", "relu_", "hardtanh", "hardtanh_", "clamp", "clamp_min")
"""Those that rounding to an unsigned range does by itself, or nearly."""

KEY = "quantization_annotation"
EPSILON = 2**-12
"""The smallest scale, as torchao has it."""


class Placement(Quantizer):  # type: ignore[misc]
    """Marks the graph's nodes; `layers` has the names of the layers found afterwards."""

    def __init__(self, target: Target, exclude: Sequence[str] = ()) -> None:
        super().__init__()
        self._cpu = target == "cpu"
        self._exclude = exclude
        self._activation = _unsigned() if self._cpu else _symmetric()
        self.layers: list[str] = []

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Called by torchao."""
        for node in model.graph.nodes:
            if operator(node) in LAYERS and not excluded(_layer(node), self._exclude):
                self._mark_layer(node)
        if self._cpu:
            for node in model.graph.nodes:
                self._mark_between(node)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Called by torchao; there is nothing that could be wrong."""

    def _mark_layer(self, node: fx.Node) -> None:
        source, weight = node.args[0], node.args[1]
        inputs = {source: self._activation, weight: _weight()}
        bias = node.args[2] if len(node.args) > 2 else None
        if self._cpu and isinstance(bias, fx.Node):
            inputs[bias] = _bias(node, source, weight)
        self.layers.append(_layer(node))
        self._mark(node, inputs)

    def _mark_between(self, node: fx.Node) -> None:
        """An addition or a max pool, if what it takes comes rounded."""
        name = operator(node)
        sources = [each for each in node.args[:2] if isinstance(each, fx.Node)]
        if name in ("add", "add_") and len(sources) == 2 and all(map(_rounded, sources)):
            self._mark(node, dict.fromkeys(sources, self._activation))
        if name == "max_pool2d" and _rounded(sources[0]):
            shared = SharedQuantizationSpec((sources[0], node))
            node.meta[KEY] = QuantizationAnnotation(
                {sources[0]: self._activation}, shared, _annotated=True
            )

    def _mark(self, node: fx.Node, inputs: dict[fx.Node, object]) -> None:
        last = _fused(node)
        rounds = self._cpu and not _is_output(last)
        output = self._activation if rounds else None
        node.meta[KEY] = QuantizationAnnotation(
            inputs, output if last is node else None, _annotated=True
        )
        if last is not node:
            last.meta[KEY] = QuantizationAnnotation({}, output, _annotated=True)


def _layer(node: fx.Node) -> str:
    return owner(node.args[1])


def _fused(node: fx.Node) -> fx.Node:
    """The activation that alone uses the node's output, or the node itself."""
    users = list(node.users)
    return users[0] if len(users) == 1 and operator(users[0]) in ACTIVATIONS else node


def _is_output(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _rounded(node: fx.Node) -> bool:
    marked = node.meta.get(KEY)
    return marked is not None and marked.output_qspec is not None


def _unsigned() -> QuantizationSpec:
    return _spec(torch.uint8, 0, 255, torch.per_tensor_affine, MovingAverageMinMaxObserver)


def _symmetric() -> QuantizationSpec:
    return _spec(torch.int8, -128, 127, torch.per_tensor_symmetric, MovingAverageMinMaxObserver)


def _weight() -> QuantizationSpec:
    observer = MovingAveragePerChannelMinMaxObserver
    return _spec(torch.int8, -127, 127, torch.per_channel_symmetric, observer, 0)


def _spec(
    dtype: torch.dtype,
    low: int,
    high: int,
    scheme: torch.qscheme,
    observer: type,
    axis: int | None = None,
) -> QuantizationSpec:
    rounding = FusedMovingAvgObsFakeQuantize.with_args(observer=observer, eps=EPSILON)
    return QuantizationSpec(dtype, rounding, low, high, scheme, axis)


def _bias(node: fx.Node, source: fx.Node, weight: fx.Node) -> DerivedQuantizationSpec:
    """INT32 in steps of the input's scale times the weight's."""
    return DerivedQuantizationSpec(
        derived_from=[(source, node), (weight, node)],
        derive_qparams_fn=_bias_scale,
        dtype=torch.int32,
        quant_min=-(2**31),
        quant_max=2**31 - 1,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )


def _bias_scale(
    roundings: list[Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    scale = roundings[0].calculate_qparams()[0] * roundings[1].calculate_qparams()[0]
    return scale, torch.zeros_like(scale, dtype=torch.int32)


def roundings(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The parts of a prepared graph that observe ranges and round."""
    for part in module.modules():
        if isinstance(part, FusedMovingAvgObsFakeQuantize):
            yield part
