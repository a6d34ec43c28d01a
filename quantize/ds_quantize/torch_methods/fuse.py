"""Batch normalizations folded into the layers before them.

The pairs are found in the exported graph, which knows what follows what whatever `forward` looks
like, and folded in the module itself, which so stays the class that it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ds_quantize.context import Context
from ds_quantize.forms import Model, TorchModel
from ds_quantize.methods.torch import Fuse
from ds_quantize.torch_export import exported
from ds_quantize.torch_methods.modules import copied, torch_model

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
CONVOLUTION_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fuse(model: Model, method: Fuse, context: Context) -> TorchModel:
    """A copy of the module without the batch normalizations that could be folded."""
    made = copied(torch_model(model, method.name))
    context.measured["fused"] = fold_norms(made)
    return made


def fold_norms(model: TorchModel) -> list[str]:
    """Fold in place; returns the names of the layers that took a normalization in."""
    module, folded = model.module, []
    for layer, norm in list(_pairs(exported(model).module(check_guards=False).graph)):
        before, after = _named(module, layer), _named(module, norm)
        fused = _fused(before, after)
        if fused is not None:
            _replace(module, layer, fused)
            _replace(module, norm, nn.Identity())
            folded.append(layer)
    return folded


def _pairs(graph: fx.Graph) -> Iterator[tuple[str, str]]:
    """Names of layers and of the normalizations that alone use their output."""
    for node in graph.nodes:
        name = operator(node)
        if name != "batch_norm" or not isinstance(node.args[0], fx.Node):
            continue
        before = node.args[0]
        if operator(before) in (*CONVOLUTIONS, "linear") and len(before.users) == 1:
            layer, norm = owner(before.args[1]), owner(node.args[1])
            if layer and norm and _used_once(before.args[1]) and _used_once(node.args[1]):
                yield layer, norm


def operator(node: fx.Node) -> str:
    """The name of an ATen operator: conv2d, linear, add; "" for other nodes."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return str(node.target.overloadpacket.__name__)


def owner(node: object) -> str:
    """The name of the module whose parameter the node reads; "" where it reads none."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        return str(node.target).rpartition(".")[0]
    return ""


def _used_once(parameter: fx.Node) -> bool:
    return len(parameter.users) == 1


def _named(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _fused(layer: nn.Module | None, norm: nn.Module | None) -> nn.Module | None:
    """One layer that does what both do, or None where they are of other kinds."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        return None
    if isinstance(layer, CONVOLUTION_MODULES):
        return fuse_conv_bn_eval(layer, norm)
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    return None


def _replace(module: nn.Module, name: str, made: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, made)
