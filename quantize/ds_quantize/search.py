"""`--auto`: recipes from the cheapest on, until the result of one passes."""

from __future__ import annotations

from rich.table import Table

from ds_quantize.errors import DataError, MethodError, MissingExtra, QuantizeError, RecipeError
from ds_quantize.forms import Form, Measured
from ds_quantize.pipeline import Pipeline
from ds_quantize.promotion import Proven, proven
from ds_quantize.recipe import Recipe, load, names

TRIED = (MethodError, RecipeError, DataError, MissingExtra)
"""What only says that a recipe is not for this model, these data or this machine."""


def recipes() -> list[Recipe]:
    """Those shipped that have a place in a search, the cheapest first."""
    found = [recipe for recipe in map(load, names()) if recipe.auto is not None]
    return sorted(found, key=lambda recipe: (recipe.auto or 0, recipe.name))


def first_that_passes(pipeline: Pipeline, recipes: list[Recipe]) -> Proven:
    """The first result that keeps its limits, else the best of those that do not.

    Its `search` lists all that were tried. Raises QuantizeError where no recipe could be applied.
    """
    tried: list[Measured] = []
    results: list[Proven] = []
    for recipe in recipes:
        if reason := unfit(pipeline, recipe):
            tried.append({"recipe": recipe.name, "skipped": reason})
            continue
        pipeline.stages.reporter.say(f"trying {recipe.name}: {recipe.summary}")
        try:
            result = proven(pipeline, pipeline.compress(recipe))
        except TRIED as error:
            tried.append({"recipe": recipe.name, "failed": str(error)})
            continue
        results.append(result)
        tried.append(_said(result))
        if result.verdict.passed:
            break
    if not results:
        raise QuantizeError("no recipe could be applied: " + "; ".join(map(_why, tried)))
    best = results[-1] if results[-1].verdict.passed else min(results, key=_drop)
    return _with_search(best, tried)


def unfit(pipeline: Pipeline, recipe: Recipe) -> str:
    """Why a recipe is not for this model or these data; nothing where it may be."""
    form: Form = pipeline.original.model.form
    first = recipe.steps[0]
    if first.takes != form and (form, first.takes) != ("torch", "onnx"):
        return f"it is for models of form {first.takes!r}"
    if any(step.needs_calibration for step in recipe.steps) and pipeline.job.calibration is None:
        return "it needs calibration data"
    return ""


def table(result: Proven) -> Table:
    """What was tried, in its order."""
    made = Table(title="Search", title_justify="left")
    for at, column in enumerate(("recipe", "result", "metric", "drop", "size", "speedup")):
        made.add_column(column, justify="left" if at < 2 else "right", no_wrap=at != 1)
    for each in (result.search or {}).get("tried", []):
        if "drop" not in each:
            made.add_row(each["recipe"], _why(each), "", "", "", "")
            continue
        said = "passed" if each["passed"] else "; ".join(each["reasons"])
        made.add_row(
            each["recipe"],
            said,
            f"{each['value']:.4f}",
            f"{each['drop']:+.4f}",
            f"{each['size']:.1%}",
            f"{each['speedup']:.2f}x",
        )
    return made


def _said(result: Proven) -> Measured:
    evaluation = result.evaluation
    return {
        "recipe": result.candidate.recipe.name,
        "passed": result.verdict.passed,
        "reasons": list(result.verdict.reasons),
        "metric": evaluation.quality.metric,
        "value": evaluation.quality.candidate.value,
        "drop": evaluation.quality.drop,
        "size": evaluation.size,
        "speedup": evaluation.speedup,
    }


def _why(tried: Measured) -> str:
    return str(tried.get("skipped") or tried.get("failed") or "")


def _drop(result: Proven) -> float:
    return result.evaluation.quality.drop


def _with_search(result: Proven, tried: list[Measured]) -> Proven:
    search: Measured = {"tried": tried, "chosen": result.candidate.recipe.name}
    return Proven(result.candidate, result.evaluation, result.verdict, search)
