"""`ds-quantize MODEL`: one recipe, or a search, up to a version in a repository."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from rich.console import Console

from ds_quantize import artifact, data, keeping, pipeline, promotion, recipe, search, text
from ds_quantize.data import Data
from ds_quantize.errors import RecipeError
from ds_quantize.evaluate import Options
from ds_quantize.limits import Gate
from ds_quantize.pipeline import Job, Pipeline
from ds_quantize.progress import Reporter, reporter
from ds_quantize.promotion import Proven
from ds_quantize.recipe import Recipe
from ds_quantize.stages import Stages, default_root


def run(arguments: argparse.Namespace) -> int:
    """0 where the result was promoted and passed."""
    console = text.console()
    artifact.check(arguments.output)
    limits = limits_of(arguments.limit)
    recipes = _recipes(arguments, limits)
    shown = reporter(console)
    opened = _opened(arguments, shown)
    if arguments.auto:
        result = search.first_that_passes(opened, recipes)
        console.print(search.table(result))
    else:
        result = promotion.proven(opened, opened.compress(recipes[0]))
    return end(result, opened, arguments, console)


def _recipes(arguments: argparse.Namespace, limits: Gate) -> list[Recipe]:
    found = search.recipes() if arguments.auto else [recipe.load(arguments.recipe)]
    return [limited(each, limits) for each in found]


def limits_of(given: list[str]) -> Gate:
    """What `--limit NAME=VALUE` says. Raises RecipeError."""
    said: dict[str, float] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or name not in Gate.__struct_fields__:
            known = ", ".join(Gate.__struct_fields__)
            raise RecipeError(f"--limit {each}: give NAME=VALUE; the limits are {known}")
        said[name] = _number(each, value)
    try:
        return msgspec.convert(said, Gate)
    except msgspec.ValidationError as error:
        raise RecipeError(f"--limit: {error}") from None


def _number(said: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise RecipeError(f"--limit {said}: {value!r} is not a number") from None


def limited(plan: Recipe, limits: Gate) -> Recipe:
    """The recipe with these limits in the place of its own."""
    changed = {
        name: value
        for name in Gate.__struct_fields__
        if (value := getattr(limits, name)) is not None
    }
    return msgspec.structs.replace(plan, gate=msgspec.structs.replace(plan.gate, **changed))


def _opened(arguments: argparse.Namespace, shown: Reporter) -> Pipeline:
    given = arguments.calibration
    with shown.stage("data"):
        calibration = None if given is None else data.load(given)
        evaluation = data.load(arguments.evaluation)
    job = job_of(arguments, arguments.model, calibration, evaluation)
    return pipeline.opened(job, stages_of(arguments, shown))


def stages_of(arguments: argparse.Namespace, shown: Reporter) -> Stages:
    """What `run` and `cascade` have in common."""
    root: Path = default_root() if arguments.work is None else arguments.work
    return Stages(root.absolute(), shown, keeping.limit(arguments.keep))


def job_of(
    arguments: argparse.Namespace, model: str, calibration: Data | None, evaluation: Data
) -> Job:
    """What `run` and `cascade` have in common."""
    return Job(
        model=model,
        calibration=calibration,
        evaluation=evaluation,
        metric=arguments.metric,
        seed=arguments.seed,
        threads=arguments.threads,
        options=Options(seconds=arguments.seconds),
    )


def end(result: Proven, opened: Pipeline, arguments: argparse.Namespace, console: Console) -> int:
    """Tell the result, and promote it where it passed; the exit status."""
    output: Path = arguments.output
    console.print(text.comparison(result.evaluation))
    for note in result.evaluation.remarks:
        console.print(f"note: {note}", markup=False)
    for reason in result.verdict.reasons:
        console.print(f"not passed: {reason}", markup=False)
    if not result.verdict.passed and not arguments.keep_failed:
        report = promotion.keep_report(opened, result, output.name)
        console.print(f"Nothing was promoted; the report is {report}", markup=False)
        return 1
    version = promotion.promote(opened, result, output)
    passed = result.verdict.passed
    said = "passed its gate" if passed else "did not pass its gate, and no server will load it"
    console.print(f"{version} {said}; its report is {version / 'report.html'}", markup=False)
    return 0 if passed else 1
