"""A run: source -> steps -> export -> build -> evaluation, each a stage that is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from ds_engines.base import BatchEngine
from ds_engines.errors import ConfigError, LoadError, Unsupported
from ds_quantize import configuration, data, evaluate, libraries, sources, stored
from ds_quantize.context import Context
from ds_quantize.data import Data
from ds_quantize.errors import DataError, QuantizeError, RecipeError
from ds_quantize.evaluate import Evaluation, Side, engines
from ds_quantize.forms import (
    FolderModel,
    Form,
    Measured,
    Model,
    OnnxModel,
    PlanModel,
    TorchModel,
)
from ds_quantize.method import Method
from ds_quantize.python_file import is_reference
from ds_quantize.recipe import Recipe
from ds_quantize.sources import Source
from ds_quantize.stages import Done, Stages, resumed_from

EXPORT = "ds_quantize.torch_export"
TO_OPENVINO = "ds_quantize.openvino_methods.folder"

NOT_RUN = (
    "nothing on this machine runs the plan: its answers are those of the ONNX file that it was "
    "built from, on the CPU, and neither its speed nor its memory was measured"
)
SAME_DATA = (
    "calibration and evaluation data are the same: what was learned from these rows is judged by "
    "them, and other rows may do worse"
)


@dataclass(frozen=True)
class Job:
    """What a run is given. `metric` stands in place of the recipe's; `threads` 0: all CPUs."""

    model: str
    calibration: Data | None = None
    evaluation: Data | None = None
    metric: str = ""
    seed: int = 0
    threads: int = 0
    options: evaluate.Options = field(default_factory=evaluate.Options)


@dataclass(frozen=True)
class Keyed:
    """A model, and the key of the stage that it comes from, which stands for its contents."""

    model: Model
    key: str


@dataclass(frozen=True)
class Candidate:
    """What a recipe has made. `judged` is what the evaluation runs: the model itself, or the ONNX
    file that it was built from where nothing here can run it.
    """

    recipe: Recipe
    made: Keyed
    judged: Keyed
    steps: list[Measured] = field(default_factory=list)

    @property
    def stand_in(self) -> str:
        """What the reader of the report should know where it is not the model itself."""
        return "" if self.made is self.judged else NOT_RUN

    def told(self, found: Evaluation) -> Evaluation:
        """What was found of a stand-in, as it is true of the model itself."""
        plan = self.made.model
        if not self.stand_in or not isinstance(plan, PlanModel):
            return found
        side = Side(path=str(plan.path), engine="tensorrt", size_bytes=engines.size(plan))
        return msgspec.structs.replace(found, candidate=side, stand_in=self.stand_in)


@dataclass
class Pipeline:
    """One model on its way through one recipe or several."""

    job: Job
    stages: Stages
    source: Source

    @cached_property
    def original(self) -> Keyed:
        """The model as the user has it."""
        return Keyed(self.source.model, self.source.digest)

    @cached_property
    def baseline(self) -> Keyed:
        """The original in the form that an engine runs."""
        return self._exported(self.original)

    @cached_property
    def engine(self) -> BatchEngine | None:
        """The baseline in its engine, where it is a tensor model."""
        model = self.baseline.model
        if not isinstance(model, OnnxModel):
            return None
        return configuration.opened(model.path, engines.usable(self.job.threads))

    @cached_property
    def calibration(self) -> Data | None:
        """Checked against the model. Raises DataError."""
        return self._fitted(self.job.calibration)

    @cached_property
    def evaluation(self) -> Data | None:
        """Checked against the model. Raises DataError."""
        return self._fitted(self.job.evaluation)

    def compress(self, recipe: Recipe) -> Candidate:
        """Apply the recipe's steps. Raises QuantizeError, which names the layer or file."""
        self._check(recipe)
        now, before, steps = self.original, self.original, []
        for method in recipe.steps:
            now = before = self._as(method.takes, now, method)
            done = self._step(now, method)
            now = Keyed(stored.get(done.result["model"], done.folder), done.key)
            about = {"method": method.name, "seconds": done.record.seconds}
            steps.append(about | done.result["measured"])
        now = self._exported(now)
        judged = before if isinstance(now.model, PlanModel) and not _runs(now.model) else now
        return Candidate(recipe, now, judged, steps)

    def prove(self, candidate: Candidate) -> Evaluation:
        """Compare it with the baseline on the evaluation data, both as built engines."""
        evaluation = self.evaluation
        if evaluation is None:
            raise DataError("nothing can be proven without evaluation data; give --evaluation")
        metric, options = self.job.metric or candidate.recipe.metric, self.job.options
        if candidate.stand_in:
            options = msgspec.structs.replace(options, batches=(), memory=False)
        baseline = self._beside(candidate)
        inputs = self._judges(candidate.judged.model) | {
            "baseline": baseline.key,
            "candidate": candidate.judged.key,
            "data": evaluation.digest,
            "metric": [metric, _digests(_file_of(metric))],
            "options": msgspec.to_builtins(options),
        }

        def make(folder: Path) -> Measured:
            found = evaluate.compare(
                baseline.model,
                candidate.judged.model,
                evaluation,
                metric,
                self._context(folder, self.original.model, {}),
                options,
            )
            return {"evaluation": msgspec.to_builtins(found)}

        done = self.stages.run("evaluate", inputs, make)
        found = candidate.told(msgspec.convert(done.result["evaluation"], Evaluation))
        notes = (*found.notes, *self._notes(candidate.recipe))
        return msgspec.structs.replace(found, notes=notes)

    def _beside(self, candidate: Candidate) -> Keyed:
        """The baseline in the engine that runs the candidate."""
        forms = self.baseline.model.form, candidate.judged.model.form
        if forms == ("huggingface", "openvino"):
            return self._to_openvino(self.baseline)
        return self.baseline

    def _judges(self, model: Model) -> dict[str, Any]:
        if not isinstance(model, FolderModel):
            return self._inputs("ds_quantize.evaluate", ())
        inputs = self._inputs("ds_quantize.evaluate", ("quantize-llm",))
        return inputs | {"reading": libraries.code("ds_quantize.llm_methods")}

    def _notes(self, recipe: Recipe) -> tuple[str, ...]:
        given = self.job.calibration, self.job.evaluation
        used = any(method.needs_calibration for method in recipe.steps)
        same = given[0] is not None and given[1] is not None and given[0].digest == given[1].digest
        return (SAME_DATA,) if used and same else ()

    def _check(self, recipe: Recipe) -> None:
        """What is wrong with the call is told before anything takes long."""
        for method in recipe.steps:
            if method.needs_calibration and self.job.calibration is None:
                raise DataError(
                    f"recipe {recipe.name}: {method.name} needs calibration data; give them with "
                    "--calibration"
                )
            given = self.calibration
            if method.needs_labels and given is not None and not given.labelled:
                raise DataError(
                    f"recipe {recipe.name}: {method.name} needs labels, and {given.source} has none"
                )

    def _step(self, at: Keyed, method: Method) -> Done:
        module = method.handler.partition(":")[0]
        # A method that never sees a PyTorch module compares with what the exporter made of it.
        original = self.original if method.takes == self.original.model.form else self.baseline
        calibration = self.calibration
        inputs = self._inputs(module, (method.extra,)) | {
            "model": at.key,
            "original": original.key,
            "method": [method.name, msgspec.to_builtins(method), _digests(method.files)],
            "calibration": None if calibration is None else calibration.digest,
        }

        def make(folder: Path) -> Measured:
            measured: Measured = {}
            context = self._context(folder, original.model, measured)
            made = _loaded(method)(at.model, method, context)
            return {"model": stored.put(made, folder), "measured": measured}

        return self.stages.run(method.name, inputs, make)

    def _as(self, form: Form, now: Keyed, method: Method) -> Keyed:
        if now.model.form == form:
            return now
        if form == "onnx" and isinstance(now.model, TorchModel):
            return self._exported(now)
        if form == "openvino" and now.model.form == "huggingface":
            return self._to_openvino(now)
        raise RecipeError(
            f"{method.name} takes a model of form {form!r}, and this is {now.model.form!r}: "
            f"{_ADVICE.get(form, 'put the steps into another order')}"
        )

    def _exported(self, now: Keyed) -> Keyed:
        """A PyTorch module as ONNX; any other model as it is."""
        model = now.model
        if not isinstance(model, TorchModel):
            return now
        inputs = self._inputs(EXPORT, ("quantize-torch",)) | {"model": now.key}

        def make(folder: Path) -> Measured:
            export = _imported(lambda: import_module(EXPORT), "quantize-torch", "exporting")
            return {"model": stored.put(export.to_onnx(model, folder / "model.onnx"), folder)}

        done = self.stages.run("export", inputs, make)
        return Keyed(stored.get(done.result["model"], done.folder), done.key)

    def _to_openvino(self, now: Keyed) -> Keyed:
        """A Hugging Face folder as OpenVINO's, with its weights as they are."""
        inputs = self._inputs(TO_OPENVINO, ("quantize-llm",)) | {"model": now.key}

        def make(folder: Path) -> Measured:
            found = _imported(lambda: import_module(TO_OPENVINO), "quantize-llm", "converting")
            made = found.exported(now.model, folder, self.stages.reporter)
            return {"model": stored.put(made, folder)}

        done = self.stages.run("to-openvino", inputs, make)
        return Keyed(stored.get(done.result["model"], done.folder), done.key)

    def _inputs(self, module: str, extras: tuple[str, ...]) -> dict[str, Any]:
        return {
            "code": libraries.code(module),
            "libraries": libraries.versions(extras),
            "seed": self.job.seed,
        }

    def _context(self, folder: Path, original: Model, measured: Measured) -> Context:
        """Evaluation data are not in it: no method may look at what it will be judged by."""
        return Context(
            folder=folder,
            progress=self.stages.reporter,
            original=original,
            calibration=self.calibration,
            measured=measured,
            seed=self.job.seed,
            threads=self.job.threads,
            resume=resumed_from(folder),
        )

    def _fitted(self, given: Data | None) -> Data | None:
        if given is None or self.engine is None:
            return given
        return data.fit(given, self.engine.spec)


_ADVICE = {
    "onnx": "it is for ONNX files and PyTorch modules",
    "torch": "give the model as FILE.py:FACTORY, and put such steps before those on ONNX files",
    "huggingface": "give a Hugging Face folder",
    "openvino": "give a Hugging Face folder, or OpenVINO's",
}


def opened(job: Job, stages: Stages) -> Pipeline:
    """Read the model. Raises SourceError, MissingExtra."""
    with stages.reporter.stage("read"):
        source = sources.read(job.model, job.calibration, job.seed)
    return Pipeline(job, stages, source)


def _loaded(method: Method) -> Callable[..., Model]:
    return _imported(method.load, method.extra, f"the method {method.name}")  # type: ignore[no-any-return]


def _imported(load: Callable[[], Any], extra: str, what: str) -> Any:
    try:
        return load()
    except ImportError as error:
        raise libraries.missing(error, extra, what) from error


def _digests(files: tuple[str, ...]) -> list[str]:
    try:
        return [sources.digest_of_path(Path(file).expanduser()) for file in files]
    except OSError as error:
        raise QuantizeError(f"{error.filename} cannot be read: {error.strerror}") from None


def _file_of(metric: str) -> tuple[str, ...]:
    """The user's file that a metric is in: `[character-error-rate:]file.py:function`."""
    if not is_reference(metric):
        return ()
    file = metric.rpartition(":")[0]
    return (file if Path(file).exists() else file.rpartition(":")[2],)


def _runs(model: PlanModel) -> bool:
    """Whether this machine has the engine, and the device, that the plan is for."""
    try:
        engines.opened(model, 1).close()
    except (ConfigError, LoadError, Unsupported):
        return False
    return True
