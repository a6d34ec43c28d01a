"""A small module trained to do what the original does."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from ds_quantize import python_file
from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Model, TorchModel
from ds_quantize.methods.torch import Distill, DistillFeatures, DistillLogits
from ds_quantize.torch_methods.losses import Agreement, hard, teacher_of
from ds_quantize.torch_methods.modules import copied, example, run, torch_model
from ds_quantize.torch_methods.rows import Rows
from ds_quantize.torch_methods.training import trainer

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)

Kept = dict[str, torch.Tensor]


def distill_logits(model: Model, method: DistillLogits, context: Context) -> TorchModel:
    """The student, trained on the teacher's outputs and, where there are, the labels."""
    made, teacher = _student(model, method), copied(teacher_of(context, method.name))

    def make(rows: Rows) -> Agreement:
        return Agreement(teacher.module, method.temperature, method.soft, hard(method, rows))

    return _trained(made, method, context, make)


def distill_features(model: Model, method: DistillFeatures, context: Context) -> TorchModel:
    """The same, and on the outputs of layers inside the teacher."""
    made, teacher = _student(model, method), copied(teacher_of(context, method.name))
    pairs = method.layers or _alike(made.module, teacher.module)
    with watched(made.module, pairs) as ours, watched(teacher.module, pairs.values()) as theirs:
        features = Features(method, pairs, (ours, theirs), teacher)
        features.fit_maps(made)

        def make(rows: Rows) -> Features:
            features.outputs = Agreement(
                teacher.module, method.temperature, method.soft, hard(method, rows)
            )
            return features

        context.measured["layers"] = dict(pairs)
        return _trained(made, method, context, make)


class Features:
    """The loss of the outputs plus, for each pair of layers, the squared error of the student's
    against the teacher's variance, through a linear map where the channels differ.
    """

    outputs: Agreement

    def __init__(
        self,
        method: DistillFeatures,
        pairs: Mapping[str, str],
        kept: tuple[Kept, Kept],
        teacher: TorchModel,
    ) -> None:
        self._method = method
        self._pairs = pairs
        self._ours, self._theirs = kept
        self._teacher = teacher
        self._maps: dict[str, nn.Linear] = {}

    def fit_maps(self, student: TorchModel) -> None:
        """Make the maps that are needed. Raises MethodError for layers that cannot be compared."""
        inputs = example(self._teacher)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            run(student.module, inputs)
            run(self._teacher.module, inputs)
            for ours, theirs in self._pairs.items():
                self._fit_map(ours, theirs)

    def _fit_map(self, ours: str, theirs: str) -> None:
        found, wanted = self._ours[ours], self._theirs[theirs]
        axis = _channel_axis(found)
        rest = [list(each.shape) for each in (found, wanted)]
        channels = [shape.pop(axis) if found.ndim == wanted.ndim else 0 for shape in rest]
        if rest[0] != rest[1]:
            raise MethodError(
                f"{self._method.name}: layers {ours!r} and {theirs!r} give shapes "
                f"{list(found.shape)} and {list(wanted.shape)}, which only may differ in channels"
            )
        if channels[0] != channels[1]:
            self._maps[ours] = nn.Linear(channels[0], channels[1], bias=False)

    def __call__(self, module: nn.Module, rows: Rows) -> torch.Tensor:
        with torch.no_grad():
            wanted = run(self._teacher.module, rows.inputs)
        total = self.outputs.given(run(module, rows.inputs), wanted, rows)
        for ours, theirs in self._pairs.items():
            part = self._distance(ours, theirs) / len(self._pairs)
            total = total + self._method.weight * part
        return total

    def _distance(self, ours: str, theirs: str) -> torch.Tensor:
        found, wanted = self._ours[ours], self._theirs[theirs]
        if ours in self._maps:
            axis = _channel_axis(found)
            found = self._maps[ours](found.movedim(axis, -1)).movedim(-1, axis)
        return nn.functional.mse_loss(found, wanted) / (wanted.var(correction=0) + 1e-6)

    def parameters(self) -> list[nn.Parameter]:
        return [weight for each in self._maps.values() for weight in each.parameters()]


@contextlib.contextmanager
def watched(module: nn.Module, names: Iterable[str]) -> Iterator[Kept]:
    """What the named layers gave at the last run, by name. MethodError for an unknown layer."""
    kept: Kept = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            hook = _layer(module, name).register_forward_hook(_keep(kept, name))
            stack.callback(hook.remove)
        yield kept


def _keep(kept: Kept, name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
    def hook(_: nn.Module, __: object, output: torch.Tensor) -> None:
        kept[name] = output

    return hook


def _layer(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        names = [each for each, _ in module.named_modules() if each]
        raise MethodError(
            f"layers: {type(module).__name__} has no layer {name!r}; it has: {', '.join(names)}"
        ) from None


def _channel_axis(output: torch.Tensor) -> int:
    """The second of pictures' and the like, the last of others'."""
    return 1 if output.ndim > 3 else -1


def _alike(student: nn.Module, teacher: nn.Module) -> dict[str, str]:
    """Layers of the same name, but for the last: its output is compared anyway."""
    names = [name for name, part in student.named_modules() if isinstance(part, LAYERS)]
    there = {name for name, part in teacher.named_modules() if isinstance(part, LAYERS)}
    alike = {name: name for name in names[:-1] if name in there}
    if not alike:
        raise MethodError(
            f"distill-features: {type(student).__name__} and {type(teacher).__name__} have no "
            "layers of the same name; say which belong together with `layers`"
        )
    return alike


def _student(model: Model, method: Distill) -> TorchModel:
    """The module to be trained: of the file, or the model as it is."""
    given = torch_model(model, method.name)
    if not method.student:
        return copied(given)
    if not python_file.is_reference(method.student):
        raise MethodError(f"{method.name}: student is {method.student!r}; give file.py:factory")
    made = python_file.function(method.student, MethodError)()
    module = made[0] if isinstance(made, tuple) else made
    if not isinstance(module, nn.Module):
        raise MethodError(f"{method.student} gave a {type(made).__name__}, not a module")
    student = copied(dataclasses.replace(given, module=module))
    _require_fit(student, given, method)
    return student


def _require_fit(student: TorchModel, original: TorchModel, method: Distill) -> None:
    with torch.no_grad():
        try:
            found = run(student.module, example(student))
        except Exception as error:
            raise MethodError(
                f"{method.student} does not take the original's inputs: {error}"
            ) from error
        wanted = run(original.module, example(original))
    shapes = [[list(each.shape) for each in outputs] for outputs in (found, wanted)]
    if shapes[0] != shapes[1]:
        raise MethodError(
            f"{method.student} gives outputs of shapes {shapes[0]}, and the original {shapes[1]}"
        )


def _trained(
    made: TorchModel,
    method: Distill,
    context: Context,
    make: Callable[[Rows], Agreement | Features],
) -> TorchModel:
    training = trainer(made, method, context, make)
    training.record("before", made.module)
    training.fit(made.module)
    training.record("after", made.module)
    context.measured["parameters"] = {
        "teacher": _count(teacher_of(context, method.name).module),
        "student": _count(made.module),
    }
    return made


def _count(module: nn.Module) -> int:
    return int(np.sum([parameter.numel() for parameter in module.parameters()]))
