"""Weights set to zero, singly or in blocks, by torch.nn.utils.prune, and kept so in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn.utils import prune

from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, TorchModel
from ds_quantize.methods.torch import PruneMagnitude, SparsityBlock
from ds_quantize.torch_methods.modules import copied, excluded, require_layers, torch_model
from ds_quantize.torch_methods.training import trainer

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)

Parameters = list[tuple[nn.Module, str]]
Narrow = Callable[[Parameters, float], None]


class Blocks(prune.BasePruningMethod):  # type: ignore[misc]
    """A mask without the blocks of the smallest norm, a share of `amount` of them.

    The weight is seen as a matrix, output channels by inputs. Incomplete blocks at its edges
    are weighed by the mean of their squares, so that they are not the first to go.
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, block: tuple[int, int], amount: float) -> None:
        self._block = block
        self._amount = amount

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        weights = t.detach().reshape(t.shape[0], -1)
        norms = block_means(weights.square(), self._block)
        count = round(norms.numel() * self._amount)
        gone = torch.zeros(norms.numel(), dtype=torch.bool)
        gone[norms.flatten().argsort()[:count]] = True
        rows, columns = self._block
        spread = gone.reshape(norms.shape).repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        kept = ~spread[: weights.shape[0], : weights.shape[1]]
        return kept.reshape(t.shape).to(default_mask) * default_mask


def block_means(matrix: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The mean of each block of a matrix; those at its edges may be smaller."""
    pooled: torch.Tensor = nn.functional.avg_pool2d(
        matrix[None, None], block, block, ceil_mode=True, count_include_pad=False
    )
    return pooled[0, 0]


def prune_magnitude(model: Model, method: PruneMagnitude, context: Context) -> TorchModel:
    """A copy of the module with the smallest of all its weights at zero."""

    def narrow(parameters: Parameters, sparsity: float) -> None:
        prune.global_unstructured(parameters, prune.L1Unstructured, amount=sparsity)

    return _pruned(model, method, context, narrow)


def sparsity_block(model: Model, method: SparsityBlock, context: Context) -> TorchModel:
    """A copy of the module with the weakest blocks of each layer at zero."""

    def narrow(parameters: Parameters, sparsity: float) -> None:
        for layer, name in parameters:
            Blocks.apply(layer, name, block=method.block, amount=sparsity)

    return _pruned(model, method, context, narrow)


def _pruned(
    model: Model, method: PruneMagnitude | SparsityBlock, context: Context, narrow: Narrow
) -> TorchModel:
    made = copied(torch_model(model, method.name))
    require_layers(made.module, method.exclude)
    parameters = _parameters(made.module, method.exclude)
    if not parameters:
        raise MethodError(
            f"{method.name}: {type(made.module).__name__} has no layer to prune; an exported graph "
            "has none: give the model as file.py:factory"
        )
    training = trainer(made, method, context)
    training.record("before", made.module)
    for step in range(1, method.steps + 1):
        sparsity = method.sparsity * step / method.steps
        _settle(parameters)
        narrow(parameters, sparsity)
        training.fit(made.module, what=f", {sparsity:.0%} zeros")
    _settle(parameters)
    training.record("after", made.module)
    context.measured["sparsity"] = dict(zeros(made.module))
    return made


def _settle(parameters: Parameters) -> None:
    """Make the zeros permanent; the next mask is computed anew, and finds them the smallest."""
    for layer, name in parameters:
        if prune.is_pruned(layer):
            prune.remove(layer, name)


def _parameters(module: nn.Module, exclude: Sequence[str]) -> Parameters:
    return [
        (part, "weight")
        for name, part in module.named_modules()
        if isinstance(part, LAYERS) and not excluded(name, exclude)
    ]


def zeros(module: nn.Module) -> Iterator[tuple[str, float]]:
    """Each layer's share of weights that are zero."""
    for name, part in module.named_modules():
        if isinstance(part, LAYERS):
            yield name, float((part.weight == 0).float().mean())
