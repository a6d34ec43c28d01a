"""INT4 weights with training, by torchao; the file has them as INT4."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from ds_engines.base import Array
from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, OnnxModel
from ds_quantize.methods.onnx import Int4Weights
from ds_quantize.methods.torch import QatInt4
from ds_quantize.onnx_methods import graph
from ds_quantize.onnx_methods.blocks import Blocks
from ds_quantize.onnx_methods.int4 import product
from ds_quantize.torch_export import to_onnx
from ds_quantize.torch_methods.integers import operators
from ds_quantize.torch_methods.modules import copied, excluded, require_layers, torch_model
from ds_quantize.torch_methods.quiet import quiet
from ds_quantize.torch_methods.training import trainer

with quiet():
    from torchao.quantization import quantize_
    from torchao.quantization.qat import FakeQuantizedLinear, IntxFakeQuantizeConfig, QATConfig

LOWEST, HIGHEST = -8, 7

INT4_OPSET = 21
"""The first whose DequantizeLinear takes INT4 and groups."""

Packed = dict[bytes, tuple[Array, Array]]
"""The bytes of a weight, [inputs, outputs], to its INT4 values and the scales of its groups."""


def qat_int4(model: Model, method: QatInt4, context: Context) -> OnnxModel:
    """`model.onnx`, with MatMulNBits or, for TensorRT, DequantizeLinear before the products."""
    made = copied(torch_model(model, method.name))
    require_layers(made.module, method.exclude)
    context.measured["layers"] = _prepared(made.module, method)
    training = trainer(made, method, context)
    training.record("before", torch_model(model, method.name).module)
    training.fit(made.module)
    training.record("after", made.module)
    packed = _settled(made.module)
    written = to_onnx(made, context.folder / "model.onnx", opset=INT4_OPSET)
    _pack(written, packed, method)
    context.measured["operators"] = operators(written.path)
    return written


def _prepared(module: nn.Module, method: QatInt4) -> list[str]:
    """Make the linear layers round their weights; returns those layers' names."""
    names = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
        and part.in_features % method.group == 0
        and not excluded(name, method.exclude)
    ]
    if not names:
        raise MethodError(
            f"{method.name}: {type(module).__name__} has no linear layer whose inputs are a "
            f"multiple of the group, {method.group}; a smaller group may fit"
        )
    rounding = IntxFakeQuantizeConfig(torch.int4, group_size=method.group, is_symmetric=True)

    def chosen(_: nn.Module, name: str) -> bool:
        return name in names

    with quiet():
        quantize_(module, QATConfig(weight_config=rounding, step="prepare"), filter_fn=chosen)
    return names


def _settled(module: nn.Module) -> Packed:
    """Plain layers again, with weights that INT4 has; what they are in INT4."""
    packed: Packed = {}
    for name, part in list(module.named_modules()):
        if isinstance(part, FakeQuantizedLinear):
            values, scales = _rounded(part)
            plain = part.to_linear()
            group = values.shape[1] // scales.shape[1]
            weight = values * scales.repeat_interleave(group, 1)
            plain.weight = nn.Parameter(weight)
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, plain)
            key = np.ascontiguousarray(weight.numpy().T).tobytes()
            packed[key] = (values.numpy().T, scales.numpy().T)
    return packed


def _rounded(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers, [outputs, inputs], and scales, [outputs, groups]."""
    with torch.no_grad():
        layer.weight_fake_quantizer(layer.weight)
        scales = layer.weight_fake_quantizer.scale.detach().float()
        group = layer.in_features // scales.shape[1]
        divided = layer.weight / scales.repeat_interleave(group, 1)
        return divided.round().clamp(LOWEST, HIGHEST), scales


def _pack(model: OnnxModel, packed: Packed, method: QatInt4) -> None:
    """Put the INT4 values in the place of the weights of the file."""
    proto = onnx.load(model.path)
    graph.name_nodes(proto)
    form = Int4Weights(
        block_size=method.group, target=method.target, accuracy_level=method.accuracy_level
    )
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    found = 0
    for node in proto.graph.node:
        key = _weight_of(node, weights)
        if key in packed:
            nodes += product(proto, node, _blocks(*packed[key], method.group), form)
            found += 1
        else:
            nodes.append(node)
    if found < len(packed):
        raise MethodError(f"{method.name}: the export has lost {len(packed) - found} layers")
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    graph.drop_unused(proto)
    onnx.checker.check_model(proto)
    onnx.save(proto, model.path)


def _weight_of(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bytes:
    """The bytes of a product's constant, [inputs, outputs]; nothing for other nodes."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in weights:
        return b""
    values = numpy_helper.to_array(weights[node.input[1]])
    turned = any(item.name == "transB" and item.i for item in node.attribute)
    return np.ascontiguousarray(values.T if turned else values).tobytes()


def _blocks(values: Array, scales: Array, group: int) -> Blocks:
    """As the writer of INT4 files has them: levels from 0 to 15, 8 standing for 0."""
    levels = (values - LOWEST).astype(np.uint8).reshape(-1, group, values.shape[1])
    return Blocks(len(values), levels, scales, np.full_like(scales, -LOWEST))
