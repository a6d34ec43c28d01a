"""Two zeros in every four weights, by ModelOpt, which keeps them so in training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, TorchModel
from ds_quantize.methods.torch import Sparsity24
from ds_quantize.torch_methods.modules import copied, run, settled, torch_model
from ds_quantize.torch_methods.quiet import quiet
from ds_quantize.torch_methods.training import Trainer, trainer

with quiet():
    import modelopt.torch.sparsity

MODES = {
    "magnitude": "sparse_magnitude",
    # It would group a convolution's weights along the kernel, which no hardware makes use of.
    "sparsegpt": [("sparsegpt", {"nn.Conv2d": {"*": None}, "nn.Linear": {"*": {}}})],
}


WANTED = {
    "magnitude": "multiples of 8 output and 16 input channels",
    "sparsegpt": "linear layers with multiples of 4 inputs and outputs",
}


def sparsity_2_4(model: Model, method: Sparsity24, context: Context) -> TorchModel:
    """A copy of the module; `measured` has the layers that follow the pattern, and the others."""
    made = copied(torch_model(model, method.name))
    training = trainer(made, method, context)
    training.record("before", made.module)
    with quiet(), settled(context.seed, context.threads):
        sparse: nn.Module = modelopt.torch.sparsity.sparsify(
            made.module, MODES[method.algorithm], {"forward_loop": _loop(training)}
        )
    training.fit(sparse)
    with quiet():
        plain: nn.Module = modelopt.torch.sparsity.export(sparse)
    _verify(plain, method, context)
    training.record("after", plain)
    return TorchModel(plain, made.example, made.outputs, made.axes)


def _loop(training: Trainer) -> object:
    def forward(module: nn.Module) -> None:
        with torch.no_grad():
            for batch in training.train.batches(training.method.batch):
                run(module, batch.inputs)

    return forward


def _verify(module: nn.Module, method: Sparsity24, context: Context) -> None:
    layers = dict(_layers(module))
    sparse = [name for name, weight in layers.items() if follows(weight)]
    if not sparse:
        raise MethodError(
            f"{method.name}: no layer of {type(module).__name__} can be made sparse; it takes "
            f"{WANTED[method.algorithm]}"
        )
    context.measured["layers"] = sparse
    context.measured["dense"] = [name for name in layers if name not in sparse]


def _layers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            yield name, part.weight.detach()


def follows(weight: torch.Tensor) -> bool:
    """Whether every four weights along the input channels, axis 1, have two zeros or more."""
    if weight.shape[1] % 4:
        return False
    fours = weight.movedim(1, -1).reshape(-1, 4)
    return bool(((fours == 0).sum(1) >= 2).all())
