"""The pipeline from Python."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ds_quantize import artifact, keeping, libraries, pipeline, promotion, stored
from ds_quantize.data import Data, load
from ds_quantize.errors import DataError, GateError, QuantizeError
from ds_quantize.evaluate import Evaluation, Options
from ds_quantize.forms import FolderModel, Model, TorchModel
from ds_quantize.gate import Verdict
from ds_quantize.loaders.rows import RowData, split
from ds_quantize.pipeline import Job, Pipeline
from ds_quantize.progress import Reporter, Silent
from ds_quantize.recipe import Recipe
from ds_quantize.recipe import load as load_recipe
from ds_quantize.sources import Source
from ds_quantize.stages import Stages, default_root

if TYPE_CHECKING:
    import torch

    from ds_engines.base import Array

Given: TypeAlias = "str | Path | torch.nn.Module | tuple[torch.nn.Module, Any]"
Rows: TypeAlias = "str | Path | Data | Mapping[str, Array]"
"""What `ds_quantize.data.load` reads, or arrays by input, rows first, with `labels` if any."""


@dataclass(frozen=True)
class Settings:
    """How a run is done. `work` keeps its stages, by default in ds-serve's cache folder, and `keep`
    gigabytes of them; `threads` 0: all CPUs; `options`: how much is measured; `reporter` shows how
    far it is.
    """

    work: str | Path | None = None
    keep: float | None = None
    seed: int = 0
    threads: int = 0
    options: Options = field(default_factory=Options)
    reporter: Reporter = field(default_factory=Silent)


@dataclass
class Quantized:
    """A model that the pipeline has made. `evaluation` and `verdict` are None where there were no
    evaluation data; `version` is its folder in a repository, where it was promoted to one.
    """

    model: Model
    recipe: Recipe
    evaluation: Evaluation | None = None
    verdict: Verdict | None = None
    version: Path | None = None
    _scratch: Path | None = None
    _stages: Stages | None = None  # for its model is in one of them

    def __post_init__(self) -> None:
        if self._scratch is not None:
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)

    @property
    def path(self) -> Path:
        """The model's file, or folder; gone with this object where there is no repository."""
        if isinstance(self.model, TorchModel):
            raise QuantizeError("a PyTorch module has no file")
        return self.model.path

    def save(self, path: str | Path) -> Path:
        """Copy the model to a file of that name, or, where it is a folder, to such a folder."""
        target = Path(path).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(self.model, FolderModel):
            return stored.copy(self.model, target)
        return stored.copy(self.model, target.parent, target.name)


def quantize(
    model: Given,
    recipe: str | Path | Recipe,
    data: Rows | None = None,
    *,
    evaluation: Rows | None = None,
    output: str | Path | None = None,
    metric: str = "",
    example: Any = None,
    settings: Settings | None = None,
) -> Quantized:
    """Apply a recipe to a model, and prove it where there are evaluation data.

    `model` is what `ds-quantize` takes, or a PyTorch module, with `example` inputs where `data`
    has none. `recipe` is a name, a path or a Recipe; `data` calibrates, `evaluation` judges.
    `output` is the folder of a model in a repository, which gets the next version; that asks for
    evaluation data. Raises GateError where the result does not keep the recipe's limits, and other
    QuantizeErrors, each with one message for a person.
    """
    plan = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe))
    if output is not None and evaluation is None:
        raise DataError(f"{output} takes only models that are proven: give evaluation data too")
    if output is not None:
        artifact.check(Path(output))
    settings = settings or Settings()
    job = Job(
        model=str(model) if isinstance(model, str | Path) else type(model).__name__,
        calibration=_data(data),
        evaluation=_data(evaluation),
        metric=metric,
        seed=settings.seed,
        threads=settings.threads,
        options=settings.options,
    )
    work = default_root() if settings.work is None else Path(settings.work)
    stages = Stages(work.absolute(), settings.reporter, keeping.limit(settings.keep))
    return _run(_opened(model, example, job, stages), plan, output)


def quantize_dynamic(
    model: Given, example: Any = None, recipe: str | Path | Recipe = "int8-dynamic"
) -> Quantized:
    """INT8 weights at once, without data and so without proof: `.save(path)` writes the model.

    `model`: an ONNX file, or a PyTorch module with `example` inputs. For a model that is to be
    served, prefer `quantize`.
    """
    scratch = Path(tempfile.mkdtemp(prefix="ds-quantize-"))
    try:
        found = quantize(model, recipe, example=example, settings=Settings(work=scratch))
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Quantized(found.model, found.recipe, _scratch=scratch)


def _run(opened: Pipeline, plan: Recipe, output: str | Path | None) -> Quantized:
    candidate = opened.compress(plan)
    if opened.job.evaluation is None:
        return Quantized(candidate.made.model, plan, _stages=opened.stages)
    result = promotion.proven(opened, candidate)
    if output is not None and not result.verdict.passed:
        report = promotion.keep_report(opened, result, Path(output).name)
        reasons = "; ".join(result.verdict.reasons)
        raise GateError(f"{plan.name} is not good enough: {reasons}; see {report}")
    version = None if output is None else promotion.promote(opened, result, Path(output))
    return Quantized(
        candidate.made.model,
        plan,
        result.evaluation,
        result.verdict,
        version,
        _stages=opened.stages,
    )


def _opened(model: Given, example: Any, job: Job, stages: Stages) -> Pipeline:
    if isinstance(model, str | Path):
        return pipeline.opened(job, stages)
    try:
        torch_source = import_module("ds_quantize.torch_source")
    except ImportError as error:
        raise libraries.missing(error, "quantize-torch", "a PyTorch module") from error
    given = model if example is None else (model, example)
    read, digest = torch_source.from_module(given, "the model given", job.calibration)
    return Pipeline(job, stages, Source(type(read.module).__name__, read, digest))


def _data(given: Rows | None) -> Data | None:
    if given is None or not isinstance(given, str | Path | Mapping):
        return given
    if not isinstance(given, Mapping):
        return load(str(given))
    arrays = {name: np.asarray(array) for name, array in given.items()}
    labels = arrays.pop("labels", None)
    return RowData("arrays", lambda: split(arrays, labels, ""))
