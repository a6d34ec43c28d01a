"""Recipes: what a file may say, and what is said of one that is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ds_quantize import methods, recipe
from ds_quantize.cli import main
from ds_quantize.errors import RecipeError
from ds_quantize.libraries import EXTRAS
from ds_quantize.methods.onnx import Int8Static


def written(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def test_a_file_becomes_methods_with_their_settings(tmp_path: Path) -> None:
    text = """
    summary: INT8 for us
    steps:
      - fold
      - method: int8-static
        calibration: percentile
        percentile: 99.9
    metric: top-1
    gate: {max_accuracy_drop: 1e-2}
    """
    made = recipe.load(written(tmp_path, text))
    assert made.name == "mine"
    assert [step.name for step in made.steps] == ["fold", "int8-static"]
    assert made.steps[1] == Int8Static(calibration="percentile", percentile=99.9)
    assert made.gate.max_accuracy_drop == 0.01


def test_a_recipe_extends_another_limit_by_limit(tmp_path: Path) -> None:
    base = "steps: [fold]\nmetric: top-1\nauto: 1\ngate: {max_accuracy_drop: 0.01, min_speedup: 2}"
    written(tmp_path, base, "base")
    text = "extends: ./base.yaml\ngate: {min_speedup: 3}"
    made = recipe.load(written(tmp_path, text))
    assert (made.name, made.metric, len(made.steps)) == ("mine", "top-1", 1)
    assert (made.gate.max_accuracy_drop, made.gate.min_speedup) == (0.01, 3)
    assert made.auto is None


def test_the_whole_recipe_can_be_written_into_a_manifest(tmp_path: Path) -> None:
    made = recipe.load(written(tmp_path, "steps: [{method: int8-dynamic}]"))
    said = made.as_data()
    assert said["steps"][0]["method"] == "int8-dynamic"
    assert said["steps"][0]["per_channel"] is True


WRONG = {
    "steps: [fold": ":1: expected ',' or ']'",
    "steps: [fold]\n\tname: x": ":2: found character",
    "- fold": "a recipe is a mapping",
    "summary: nothing": "steps is missing",
    "steps: [int9-static]": "steps[0]: no method is called 'int9-static'; did you mean",
    "steps: [{method: fold, levle: basic}]": "fold has no setting 'levle'; did you mean 'level'",
    "steps: [{method: fold, level: most}]": "steps[0]: level: Invalid enum value 'most'",
    "steps: [fold, 7]": "steps[1]: 7 is not a step",
    "steps: [fold]\nsteps: [fold]": ":2: 'steps' is given twice",
    "steps: [fold]\ngate: {max_drop: 1}": "gate: Object contains unknown field `max_drop`",
    "steps: [fold]\ngate: {min_speedup: 0}": "gate.min_speedup: Expected `float` > 0.0",
    "steps: [fold]\nmetrics: top-1": "no field 'metrics'; did you mean 'metric'",
    "steps: [fold]\nextends: no-such": "no recipe is called 'no-such'",
    "steps: [fold]\nextends: ./mine.yaml": "extends it in turn",
    "steps: [fold]\nextends: ./other.yaml": "cannot be read: No such file",
    "steps: [fold]\n3: x": "the field 3 must be a word",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_with_file_and_field(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        recipe.load(path)
    assert WRONG[text] in str(caught.value)
    assert str(tmp_path) in str(caught.value) or "no recipe is called" in str(caught.value)


def test_a_name_that_is_not_shipped_is_told_with_those_that_are() -> None:
    with pytest.raises(RecipeError, match=r"no recipe is called 'int9'.*there are"):
        recipe.load("int9")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"must end with \.yaml"):
        recipe.load(str(tmp_path / "model.onnx"))


def test_recipes_and_methods_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == main(["methods"]) == 0
    said = capsys.readouterr().out
    for name in (*recipe.names(), *methods.METHODS):
        assert f" {name} " in said
    for name in recipe.names():
        assert main(["recipes", name]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{name}: ")
        assert "\ngate: max_accuracy_drop: " in said
    assert main(["methods", "int9"]) == 1
    assert "no method is called 'int9'" in capsys.readouterr().err


def test_every_shipped_recipe_is_valid_and_says_what_it_does() -> None:
    for name in recipe.names():
        made = recipe.load(name)
        assert made.name == name
        assert made.summary
        assert made.gate.max_accuracy_drop is not None or made.metric


def test_every_method_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    for name, method in methods.METHODS.items():
        assert methods.summary(method)
        assert main(["methods", name]) == 0
        said = capsys.readouterr().out
        assert methods.summary(method) in " ".join(said.split())
        for field in method.__struct_fields__:
            assert f"\n  {field}: " in said
        module, _, function = method.handler.partition(":")
        assert module.startswith("ds_quantize.")
        assert function


def test_every_method_names_an_extra_that_there_is() -> None:
    """Users are told to install it, and its libraries' versions are part of a stage's key."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = set(project["project"]["optional-dependencies"])
    assert set(EXTRAS) <= extras
    for method in methods.METHODS.values():
        assert method.extra in EXTRAS, method
