"""A search stops at the first recipe whose result is good enough, and says what it tried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quantizing import Workshop, workshop

from ds_quantize import data, pipeline, promotion, search
from ds_quantize.errors import QuantizeError
from ds_quantize.evaluate import Options
from ds_quantize.pipeline import Job, Pipeline
from ds_quantize.progress import Silent
from ds_quantize.recipe import Recipe, load
from ds_quantize.report.pareto import front
from ds_quantize.stages import Stages

GATE = "metric: top-1\ngate: {max_accuracy_drop: 0.1, max_size: 0.5}\nsummary: a test\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return workshop(tmp_path_factory.mktemp("search"))


def recipe(shop: Workshop, name: str, steps: str) -> Recipe:
    shop.recipe(f"{GATE}steps: {steps}", name)
    return load(str(shop.folder / f"{name}.yaml"))


def opened(shop: Workshop, calibration: bool = True) -> Pipeline:
    job = Job(
        model=str(shop.folder / "net.onnx"),
        calibration=data.load(str(shop.folder / "cal.npz")) if calibration else None,
        evaluation=data.load(str(shop.folder / "eval.npz")),
        threads=1,
        options=Options(seconds=0.02, memory=False),
    )
    return pipeline.opened(job, Stages(shop.folder / "work", Silent()))


@pytest.mark.slow
def test_the_first_that_passes_is_taken_and_dearer_ones_are_not_tried(
    shop: Workshop, tmp_path: Path
) -> None:
    run = opened(shop)
    result = search.first_that_passes(
        run,
        [
            recipe(shop, "folded", "[fold]"),
            recipe(shop, "trained", "[finetune]"),
            recipe(shop, "impossible", "[{method: int8-static, exclude: [no-such]}]"),
            recipe(shop, "static", "[int8-static]"),
            recipe(shop, "never", "[int8-dynamic]"),
        ],
    )
    assert result.candidate.recipe.name == "static"
    assert result.verdict.passed
    assert result.search is not None
    folded, trained, impossible, static = result.search["tried"]
    assert not folded["passed"]
    assert "max_size" in folded["reasons"][0]
    assert trained["skipped"] == "it is for models of form 'torch'"
    assert "no layer is called 'no-such'" in impossible["failed"]
    assert static["passed"]

    version = promotion.promote(run, result, tmp_path / "models" / "net")
    said = json.loads((version / "manifest.json").read_text())
    assert said["measured"]["search"]["chosen"] == "static"
    page = (version / "report.html").read_text()
    assert "<h2>Search</h2>" in page
    assert page.count(">static<") >= 2  # in the picture, and in the table


@pytest.mark.slow
def test_where_none_passes_the_best_is_told(shop: Workshop) -> None:
    plans = [
        recipe(shop, "folded", "[fold]"),
        recipe(shop, "needs", "[int8-static]"),
    ]
    result = search.first_that_passes(opened(shop, calibration=False), plans)
    assert result.candidate.recipe.name == "folded"
    assert not result.verdict.passed
    assert result.search is not None
    assert result.search["tried"][1]["skipped"] == "it needs calibration data"
    with pytest.raises(QuantizeError, match="no recipe could be applied: it needs calibration"):
        search.first_that_passes(opened(shop, calibration=False), plans[1:])


def test_the_front_has_what_nothing_else_beats() -> None:
    points = {
        "a": (0.0, 1.0),
        "b": (0.01, 0.5),
        "c": (0.02, 0.5),
        "d": (0.03, 0.6),
        "e": (0.05, 0.2),
    }
    tried = [
        {"recipe": name, "drop": drop, "size": size, "speedup": 1 / size}
        for name, (drop, size) in points.items()
    ]
    assert [each["recipe"] for each in front(tried, "size")] == ["e", "b", "a"]
    assert [each["recipe"] for each in front(tried, "speedup")] == ["e", "b", "a"]


def test_recipes_that_are_shipped_for_a_search_come_cheapest_first() -> None:
    found = search.recipes()
    assert found
    places = [plan.auto for plan in found]
    assert places == sorted(places, key=lambda place: place or 0)
    assert None not in places
