"""What training makes small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from ds_quantize import python_file
from ds_quantize.context import Context
from ds_quantize.errors import DataError, MethodError
from ds_quantize.forms import TorchModel
from ds_quantize.methods.torch import Training
from ds_quantize.torch_methods.modules import copied, run, torch_model
from ds_quantize.torch_methods.rows import Rows

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Objective(Protocol):
    """The loss of some rows, one number; it may have weights of its own to be trained."""

    def __call__(self, module: nn.Module, rows: Rows) -> torch.Tensor: ...

    def parameters(self) -> list[nn.Parameter]: ...


class Labels:
    """Distance of the first output from the labels."""

    def __init__(self, criterion: Criterion, name: str) -> None:
        self._criterion = criterion
        self._name = name

    def __call__(self, module: nn.Module, rows: Rows) -> torch.Tensor:
        if rows.labels is None:
            raise DataError(f"the loss {self._name} needs labels, which the calibration data lack")
        output = run(module, rows.inputs)[0]
        try:
            return self._criterion(output, rows.labels)
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(
                f"the labels, of shape {list(rows.labels.shape)}, do not fit the first output, of "
                f"shape {list(output.shape)}: {str(error).splitlines()[0]}"
            ) from error

    def parameters(self) -> list[nn.Parameter]:
        return []


class Agreement:
    """Distance of the outputs from the teacher's, and with labels from those too."""

    def __init__(
        self, teacher: nn.Module, temperature: float, soft: float, hard: Objective | None
    ) -> None:
        self._teacher = teacher
        self._temperature = temperature
        self._soft = soft
        self._hard = hard

    def __call__(self, module: nn.Module, rows: Rows) -> torch.Tensor:
        with torch.no_grad():
            wanted = run(self._teacher, rows.inputs)
        return self.given(run(module, rows.inputs), wanted, rows)

    def given(
        self, found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...], rows: Rows
    ) -> torch.Tensor:
        """The same where the outputs are already there."""
        pairs = zip(found, wanted, strict=True)
        soft = torch.stack([apart(one, other, self._temperature) for one, other in pairs]).mean()
        if self._hard is None or rows.labels is None:
            return soft
        return self._soft * soft + (1 - self._soft) * self._hard(_Given(found), rows)

    def parameters(self) -> list[nn.Parameter]:
        return []


class _Given:
    """Stands for the module where its outputs are known."""

    def __init__(self, found: tuple[torch.Tensor, ...]) -> None:
        self._found = found

    def __call__(self, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._found


def apart(found: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """For scores of classes, [rows, classes], the Kullback-Leibler divergence of the softened
    probabilities, times the temperature's square as in Hinton et al. 2015 (arXiv:1503.02531);
    else the squared error against the variance of what is wanted.
    """
    if found.shape != wanted.shape:
        raise MethodError(
            f"the student's output has the shape {list(found.shape)}, and the teacher's "
            f"{list(wanted.shape)}; they must be alike"
        )
    if wanted.ndim == 2 and wanted.shape[1] > 1:
        log = functional.log_softmax(found / temperature, -1)
        goal = functional.log_softmax(wanted / temperature, -1)
        return temperature**2 * functional.kl_div(log, goal, reduction="batchmean", log_target=True)
    return functional.mse_loss(found, wanted) / (wanted.var(correction=0) + 1e-6)


CRITERIA: dict[str, Criterion] = {
    "cross-entropy": functional.cross_entropy,
    "mse": lambda found, labels: functional.mse_loss(found.reshape(labels.shape), labels),
}


def objective(method: Training, context: Context, rows: Rows) -> Objective:
    """The loss that the method names. Raises MethodError or DataError."""
    name = method.loss
    if name == "auto":
        name = _fitting(rows)
    if name == "agree":
        teacher = copied(teacher_of(context, method.name))
        return Agreement(teacher.module, 1.0, 1.0, None)
    return by_labels(name)


def by_labels(name: str) -> Labels:
    """The loss of that name, or `file.py:function`."""
    if python_file.is_reference(name):
        return Labels(_checked(python_file.function(name, MethodError), name), name)
    if name not in CRITERIA:
        raise MethodError(
            f"no loss is called {name!r}; there are: auto, agree, {', '.join(CRITERIA)}, or "
            "file.py:function"
        )
    return Labels(CRITERIA[name], name)


def teacher_of(context: Context, method: str) -> TorchModel:
    """The model as it was before the first step."""
    return torch_model(context.original, f"{method}, for its teacher,")


def hard(method: Training, rows: Rows) -> Labels | None:
    """The loss of the labels; None where there are none, or none are wanted."""
    name = _fitting(rows) if method.loss == "auto" else method.loss
    return None if name == "agree" else by_labels(name)


def _fitting(rows: Rows) -> str:
    if rows.labels is None:
        return "agree"
    return "mse" if rows.labels.is_floating_point() else "cross-entropy"


def _checked(function: Callable[..., Any], name: str) -> Criterion:
    def criterion(found: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = function(found, labels)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise MethodError(f"{name} must give a tensor of one number, and gave {loss!r:.100}")
        return loss.reshape(())

    return criterion
