"""Whole channels removed, by torch-pruning, which knows what depends on a channel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, TorchModel
from ds_quantize.methods.torch import PruneChannels
from ds_quantize.torch_export import exported
from ds_quantize.torch_methods.fuse import owner
from ds_quantize.torch_methods.modules import (
    copied,
    example,
    excluded,
    require_layers,
    run,
    torch_model,
)
from ds_quantize.torch_methods.quiet import quiet
from ds_quantize.torch_methods.training import trainer

with quiet():
    import torch_pruning
    from torch_pruning.utils import count_ops_and_params

PRUNABLE = (nn.modules.conv._ConvNd, nn.Linear)

STRIDE = 50
"""Into how many parts the way to removing all channels is divided."""


def prune_channels(model: Model, method: PruneChannels, context: Context) -> TorchModel:
    """A smaller copy of the module.

    Raises MethodError where the share cannot be reached, or the layers' dependencies be found.
    """
    made = copied(torch_model(model, method.name))
    require_layers(made.module, method.exclude)
    if not any(isinstance(part, PRUNABLE) for part in made.module.modules()):
        raise MethodError(
            f"{method.name}: {type(made.module).__name__} has no convolutions or linear layers of "
            "its own; an exported graph has none: give the model as file.py:factory"
        )
    training = trainer(made, method, context)
    training.record("before", made.module)
    whole = _sizes(made)
    for step in range(1, method.steps + 1):
        keep = 1 - (1 - method.keep) * step / method.steps
        _shrink(made, method, keep * whole[method.of])
        left = _sizes(made)[method.of] / whole[method.of]
        training.fit(made.module, what=f", {left:.0%} of {method.of} left")
    training.record("after", made.module)
    _require_same_shapes(made, torch_model(model, method.name))
    context.measured["sizes"] = {"before": whole, "after": _sizes(made)}
    context.measured["channels"] = dict(_channels(made.module))
    return made


def _shrink(model: TorchModel, method: PruneChannels, goal: float) -> None:
    """Remove channels until the model has no more than `goal` parameters or operations."""
    ignored = [*_last(model), *_excluded(model.module, method.exclude)]
    importance = torch_pruning.importance.MagnitudeImportance(p=method.norm)
    with quiet():
        try:
            pruner = torch_pruning.pruner.BasePruner(
                model.module,
                example(model),
                importance,
                global_pruning=method.globally,
                pruning_ratio=1.0,
                max_pruning_ratio=method.max_ratio,
                iterative_steps=STRIDE,
                ignored_layers=ignored,
                round_to=method.round_to if method.round_to > 1 else None,
            )
        except Exception as error:
            raise MethodError(
                f"{method.name}: the dependencies between layers cannot be found: "
                f"{type(error).__name__}: {error}"
            ) from error
        for _ in range(STRIDE):
            if _sizes(model)[method.of] <= goal:
                return
            pruner.step()
    if _sizes(model)[method.of] > goal:
        raise MethodError(
            f"{method.name}: {_sizes(model)[method.of]:,.0f} {method.of} are left, and {goal:,.0f} "
            "are wanted; raise `keep` or `max_ratio`, or exclude fewer layers"
        )


def _sizes(model: TorchModel) -> dict[str, float]:
    """Numbers of parameters, and of multiplications for the example's rows."""
    with quiet():
        operations, parameters = count_ops_and_params(model.module, example(model))
    return {"parameters": float(parameters), "operations": float(operations)}


def _last(model: TorchModel) -> list[nn.Module]:
    """The layers that make the outputs, whose channels are the outputs' own."""
    graph = exported(model).module(check_guards=False).graph
    output = next(node for node in graph.nodes if node.op == "output")
    names = {name for node in output.all_input_nodes for name in _makers(node)}
    return [model.module.get_submodule(name) for name in names]


def _makers(node: fx.Node) -> Iterator[str]:
    """Names of the nearest layers with weights before the node."""
    seen, queue = set(), [node]
    while queue:
        at = queue.pop()
        if at in seen:
            continue
        seen.add(at)
        names = {owner(each) for each in at.all_input_nodes} - {""}
        yield from names
        if not names:
            queue.extend(at.all_input_nodes)


def _excluded(module: nn.Module, patterns: tuple[str, ...]) -> list[nn.Module]:
    return [part for name, part in module.named_modules() if name and excluded(name, patterns)]


def _channels(module: nn.Module) -> Iterator[tuple[str, int]]:
    for name, part in module.named_modules():
        if isinstance(part, PRUNABLE):
            yield name, int(part.weight.shape[0])


def _require_same_shapes(made: TorchModel, original: TorchModel) -> None:
    with torch.no_grad():
        pairs = zip(
            run(made.module, example(made)), run(original.module, example(original)), strict=True
        )
        for found, wanted in pairs:
            if found.shape != wanted.shape:
                raise MethodError(
                    f"prune-channels changed an output from {list(wanted.shape)} to "
                    f"{list(found.shape)}; exclude the layer that makes it"
                )
