"""Training the model further."""

from __future__ import annotations

from ds_quantize.context import Context
from ds_quantize.forms import Model, TorchModel
from ds_quantize.methods.torch import Finetune
from ds_quantize.torch_methods.modules import copied, torch_model
from ds_quantize.torch_methods.training import trainer


def finetune(model: Model, method: Finetune, context: Context) -> TorchModel:
    """A copy of the module, trained."""
    made = copied(torch_model(model, method.name))
    training = trainer(made, method, context)
    training.record("before", made.module)
    training.fit(made.module)
    training.record("after", made.module)
    return made
