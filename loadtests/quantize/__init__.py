"""Real models through the quantization pipeline: how much smaller, how much faster, how near.

`python -m loadtests.quantize` runs all of them and writes the tables of docs/quantize-results.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ds_quantize.recipe_file import shipped

TENSORS, LANGUAGE = "results", "language models"
RECIPES = Path(__file__).with_name("recipes")


@dataclass(frozen=True)
class Case:
    """What `ds-quantize` is given: a model, data, and a recipe with limits. `table` is the one of
    the page that it is in.
    """

    name: str
    about: str
    model: str
    calibration: str
    evaluation: str
    recipe: Path
    table: str = TENSORS


def recipe(name: str) -> Path:
    """Of this folder, or of those that come with the product."""
    own = RECIPES / f"{name}.yaml"
    return own if own.exists() else shipped()[name.removeprefix("digits-")]
