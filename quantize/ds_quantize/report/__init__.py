"""The report: one HTML file that needs nothing else, and the same as JSON beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_quantize.report.page import page
from ds_quantize.report.values import as_json

if TYPE_CHECKING:
    from ds_quantize.evaluate.results import Evaluation
    from ds_quantize.forms import Measured
    from ds_quantize.gate import Verdict

__all__ = ["write"]


def write(
    folder: Path, evaluation: Evaluation, verdict: Verdict, recipe: Any, measured: Measured
) -> Path:
    """Write `report.html` and `report.json` into `folder`; the path of the HTML file.

    `recipe` is anything that msgspec can turn into JSON; its `gate`, where it has one, is shown
    beside the values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = as_json(evaluation, verdict, recipe, measured)
    (folder / "report.json").write_bytes(data)
    path = folder / "report.html"
    path.write_text(page(evaluation, verdict, recipe, measured), encoding="utf-8")
    return path
