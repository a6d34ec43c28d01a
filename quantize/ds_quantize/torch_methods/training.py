"""The loop that all training methods share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from ds_quantize.context import Context
from ds_quantize.errors import MethodError
from ds_quantize.forms import Measured, TorchModel
from ds_quantize.methods.torch import Training
from ds_quantize.torch_methods import losses, rows
from ds_quantize.torch_methods.checkpoints import Checkpoints, State
from ds_quantize.torch_methods.losses import Objective
from ds_quantize.torch_methods.modules import run, set_training, settled
from ds_quantize.torch_methods.rows import Rows

CLIP = 5.0
"""The largest norm of a step's gradients."""

JUDGED = 256
"""Rows that are measured at a time."""

MakeObjective = Callable[[Rows], Objective]


@dataclass(frozen=True)
class Trainer:
    """Trains modules on the calibration data, and measures them on rows kept out of it.

    Without rows kept out, the training's own are measured. `objective` is what training makes
    small, for the whole of its life. A stage that trains several times does so in the same order
    whenever it is run, which is how its checkpoints are found again.
    """

    method: Training
    context: Context
    train: Rows
    held: Rows
    objective: Objective
    checkpoints: Checkpoints = field(default_factory=lambda: Checkpoints(None))

    def fit(self, module: nn.Module, epochs: int | None = None, what: str = "") -> None:
        """Train the module in place; it is in evaluation mode afterwards.

        Raises MethodError where the loss is no longer finite.
        """
        with settled(self.context.seed, self.context.threads):
            self._fit(module, self.method.epochs if epochs is None else epochs, what)

    def judge(self, module: nn.Module) -> Measured:
        """`accuracy` for labels that are classes, `loss`, and `rows`, of the rows kept out."""
        with settled(self.context.seed, self.context.threads), torch.no_grad():
            set_training(module, False)
            return self._judge(module)

    def record(self, stage: str, module: nn.Module) -> None:
        """Keep what `judge` says, as `validation_before`, say."""
        self.context.measured[f"validation_{stage}"] = self.judge(module)

    def _fit(self, module: nn.Module, epochs: int, what: str) -> None:
        course, kept = self._course(module, epochs), self.checkpoints.next()
        begun = course.restore(kept.load())
        if 0 < begun < epochs:
            said = f"{self.method.name}{what}: goes on after epoch {begun} of {epochs}"
            self.context.progress.say(said)
        for epoch in range(begun, epochs):
            label = f"{self.method.name}{what}: epoch {epoch + 1} of {epochs}"
            self._epoch(course, label)
            course.best.see(self._worth(module) if self.method.keep_best else epoch)
            if kept.due() or epoch + 1 == epochs:
                kept.save(course.state(epoch + 1))
        course.best.restore()

    def _course(self, module: nn.Module, epochs: int) -> _Course:
        method = self.method
        parameters = [p for p in module.parameters() if p.requires_grad]
        parameters += self.objective.parameters()
        steps = max(1, epochs * math.ceil(self.train.count / method.batch))
        optimizer = torch.optim.AdamW(
            parameters, method.learning_rate, weight_decay=method.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        best = _Best(module, self._worth(module) if method.keep_best and epochs else -math.inf)
        return _Course(module, parameters, self.objective.parameters(), optimizer, schedule, best)

    def _epoch(self, course: _Course, label: str) -> None:
        set_training(course.module, True)
        for batch in self._batches(label):
            self._step(course.module, batch, course.parameters, course.optimizer, label)
            course.schedule.step()
        set_training(course.module, False)

    def _batches(self, label: str) -> Iterator[Rows]:
        order = torch.randperm(self.train.count)
        size = self.method.batch
        # One row alone has no variance, which batch normalization needs.
        whole = [part for part in order.split(size) if len(part) > 1]
        for part in self.context.progress.track(whole, label, len(whole)):
            yield self.train.take(part)

    def _step(
        self,
        module: nn.Module,
        batch: Rows,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        label: str,
    ) -> None:
        loss = self.objective(module, batch)
        if not torch.isfinite(loss):
            raise MethodError(
                f"{label}: the loss is {loss.item()}; a smaller learning_rate than "
                f"{self.method.learning_rate} may help"
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()

    def _worth(self, module: nn.Module) -> float:
        """Accuracy, and among equals the smaller loss."""
        with torch.no_grad():
            judged = self._judge(module)
        return float(judged.get("accuracy", 0.0)) - 1e-4 * math.tanh(judged["loss"])

    def _judge(self, module: nn.Module) -> Measured:
        measured = self.held if self.held.count else self.train
        right, lost = 0, 0.0
        for batch in measured.batches(JUDGED):
            lost += float(self.objective(module, batch)) * batch.count
            right += _right(run(module, batch.inputs)[0], batch.labels)
        judged: Measured = {"loss": lost / measured.count, "rows": measured.count}
        if _classes(measured):
            judged["accuracy"] = right / measured.count
        return judged


def trainer(
    model: TorchModel,
    method: Training,
    context: Context,
    make: MakeObjective | None = None,
) -> Trainer:
    """On the calibration data; `make` gives the objective, by default the one the method names."""
    data = context.needed_calibration(method.name)
    every = rows.read(model, data, method.batch)
    train, held = every.split(method.validation, context.seed)
    made = make(every) if make is not None else losses.objective(method, context, every)
    return Trainer(method, context, train, held, made, Checkpoints(context.resume))


class _Best:
    """The weights of the best state seen."""

    def __init__(self, module: nn.Module, worth: float) -> None:
        self._module = module
        self.worth = worth
        self.weights = copy.deepcopy(module.state_dict())

    def see(self, worth: float) -> None:
        if worth >= self.worth:
            self.worth = worth
            self.weights = copy.deepcopy(self._module.state_dict())

    def restore(self) -> None:
        self._module.load_state_dict(self.weights)


@dataclass(frozen=True)
class _Course:
    """All that one training changes. `extra` are the parameters that are the objective's own."""

    module: nn.Module
    parameters: list[nn.Parameter]
    extra: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    best: _Best

    def state(self, epochs: int) -> State:
        """After so many epochs, with that of the random numbers."""
        return {
            "epochs": epochs,
            "module": self.module.state_dict(),
            "extra": [parameter.detach() for parameter in self.extra],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best": (self.best.worth, self.best.weights),
            "random": torch.get_rng_state(),
        }

    def restore(self, state: State) -> int:
        """Go back to a state; the epochs that it has behind it. None where it is empty."""
        if not state:
            return 0
        self.module.load_state_dict(state["module"])
        for parameter, value in zip(self.extra, state["extra"], strict=True):
            parameter.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.best.worth, self.best.weights = state["best"]
        torch.set_rng_state(state["random"])
        return int(state["epochs"])


def _classes(measured: Rows) -> bool:
    return measured.labels is not None and not measured.labels.is_floating_point()


def _right(output: torch.Tensor, labels: torch.Tensor | None) -> int:
    """How many rows have the greatest score at their label."""
    if labels is None or labels.is_floating_point() or output.ndim < 2:
        return 0
    return int((output.argmax(1) == labels).sum())
