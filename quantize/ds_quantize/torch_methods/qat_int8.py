"""INT8 with training, by torchao: the file has explicit QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import torch
from torch import nn

from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, OnnxModel, TorchModel
from ds_quantize.methods.torch import QatInt8
from ds_quantize.torch_export import exported, frozen, to_onnx
from ds_quantize.torch_methods.fuse import fold_norms
from ds_quantize.torch_methods.integers import operators
from ds_quantize.torch_methods.modules import copied, require_layers, run, torch_model
from ds_quantize.torch_methods.placement import Placement, roundings
from ds_quantize.torch_methods.quiet import quiet
from ds_quantize.torch_methods.training import Trainer, trainer

with quiet():
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e


def qat_int8(model: Model, method: QatInt8, context: Context) -> OnnxModel:
    """`model.onnx`; `measured` says which layers ONNX Runtime runs in integers."""
    made = copied(torch_model(model, method.name))
    require_layers(made.module, method.exclude)
    fold_norms(made)
    training = trainer(made, method, context)
    training.record("before", made.module)
    graph = _trained(made, method, training)
    training.record("after", graph)
    written = _written(made, graph, context)
    context.measured["operators"] = operators(written.path)
    return written


def _trained(model: TorchModel, method: QatInt8, training: Trainer) -> nn.Module:
    """The graph with rounding in it, its weights trained to bear that."""
    placement = Placement(method.target, method.exclude)
    with quiet():
        graph: nn.Module = prepare_qat_pt2e(exported(model).module(check_guards=False), placement)
    if not placement.layers:
        raise MethodError(
            f"{method.name}: {type(model.module).__name__} has no convolution or linear layer "
            "that could be quantized"
        )
    training.context.measured["layers"] = placement.layers
    _observe(graph, training)
    training.fit(graph)
    return graph


def _observe(graph: nn.Module, training: Trainer) -> None:
    """Find the ranges of all tensors before any of them is rounded, then keep rounding."""
    for part in roundings(graph):
        part.disable_fake_quant()
    batches = list(training.train.batches(training.method.batch))
    with torch.no_grad():
        for batch in training.context.progress.track(batches, "qat-int8: ranges", len(batches)):
            run(graph, batch.inputs)
    for part in roundings(graph):
        part.enable_fake_quant()


def _written(model: TorchModel, graph: nn.Module, context: Context) -> OnnxModel:
    with quiet():
        converted = convert_pt2e(graph)
    return to_onnx(model, context.folder / "model.onnx", frozen(model, converted))
