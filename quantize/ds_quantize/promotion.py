"""From a judged candidate to a version that the server loads, or to a report that says why not."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ds_engines import manifest
from ds_engines.manifest import DataSet, DataSets, Judgement, Manifest
from ds_quantize import artifact, configuration, disk, gate, libraries, report, stored
from ds_quantize.data import Data
from ds_quantize.errors import QuantizeError
from ds_quantize.evaluate import Evaluation, engines, joining
from ds_quantize.forms import FolderModel, Measured, OnnxModel, PlanModel
from ds_quantize.gate import Verdict
from ds_quantize.pipeline import Candidate, Pipeline

FILES = {"onnx": "model.onnx", "plan": "model.plan"}
BACKENDS = {"onnx": "onnxruntime", "plan": "tensorrt"}


@dataclass(frozen=True)
class Proven:
    """A candidate with its evaluation and the gate's verdict. `search`: what else was tried."""

    candidate: Candidate
    evaluation: Evaluation
    verdict: Verdict
    search: Measured | None = None

    @property
    def measured(self) -> Measured:
        """All numbers, for the manifest and the report."""
        steps: Measured = {"steps": self.candidate.steps}
        return steps if self.search is None else steps | {"search": self.search}

    def write_report(self, folder: Path) -> Path:
        """`report.html` and `report.json`; the path of the first."""
        recipe = self.candidate.recipe.as_data()
        return report.write(folder, self.evaluation, self.verdict, recipe, self.measured)


def proven(pipeline: Pipeline, candidate: Candidate) -> Proven:
    """Evaluate a candidate and judge it by its recipe's limits."""
    evaluation = pipeline.prove(candidate)
    return Proven(candidate, evaluation, gate.judge(candidate.recipe.gate, evaluation))


def promote(pipeline: Pipeline, result: Proven, output: Path) -> Path:
    """Write it as the next version of the model's folder `output`; the version's folder."""
    model = result.candidate.made.model
    config = _config(pipeline, result, output)
    page = keep_report(pipeline, result, output.name)

    def fill(folder: Path) -> None:
        stored.copy(model, folder, FILES.get(model.form, ""))
        for file in page.parent.iterdir():
            shutil.copyfile(file, folder / file.name)
        manifest.write(folder, _manifest(pipeline, result, folder))

    with pipeline.stages.reporter.stage("promote"):
        return artifact.promote(output, fill, config)


def keep_report(pipeline: Pipeline, result: Proven, name: str) -> Path:
    """Write the report into the work folder; its path."""
    folder = pipeline.stages.root / "reports" / f"{name}-{result.candidate.recipe.name}"
    with pipeline.stages.reporter.stage("report"):
        return result.write_report(disk.emptied(folder))


def _manifest(pipeline: Pipeline, result: Proven, folder: Path) -> Manifest:
    recipe, verdict = result.candidate.recipe, result.verdict
    extras = {"quantize", *(method.extra for method in recipe.steps)}
    evaluation: Measured = msgspec.to_builtins(result.evaluation)
    return Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        source=manifest.Source(pipeline.source.said, pipeline.source.digest),
        recipe=recipe.as_data(),
        libraries=libraries.versions(extras),
        data=DataSets(_data(pipeline.job.calibration), _data(pipeline.job.evaluation)),
        files=manifest.listing(folder),
        measured=result.measured | {"evaluation": evaluation},
        gate=Judgement(
            passed=verdict.passed,
            limits=msgspec.to_builtins(recipe.gate),
            values=msgspec.to_builtins(verdict.values),
            reasons=list(verdict.reasons),
        ),
    )


def _data(given: Data | None) -> DataSet | None:
    return None if given is None else DataSet(given.source, given.digest, given.rows)


def _config(pipeline: Pipeline, result: Proven, output: Path) -> str:
    """The text of a config.pbtxt for the new version, which fits one that is there already."""
    candidate, model = result.candidate, result.candidate.made.model
    if isinstance(model, FolderModel):
        return f'name: "{output.name}"\n'
    tensors = candidate.judged.model
    if not isinstance(tensors, OnnxModel | PlanModel):
        raise QuantizeError(f"a model of form {model.form!r} is nothing that a server loads")
    with closing(
        configuration.opened(tensors.path, engines.usable(pipeline.job.threads))
    ) as engine:
        spec, file = engine.spec, FILES[model.form]
        if result.evaluation.joined_rows and pipeline.engine is not None:
            spec = joining.with_axes(spec, pipeline.engine.spec) or spec
        configuration.check_against(output, spec, file)
        return configuration.written(spec, output.name, file, BACKENDS[model.form])
