"""Recipes: which methods, in which order, and how good the result must be; data, not code."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ds_quantize import methods
from ds_quantize.errors import RecipeError
from ds_quantize.limits import Gate
from ds_quantize.method import Method
from ds_quantize.recipe_file import is_name, read, shipped

Fields = dict[str, Any]
Made = TypeVar("Made")


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole recipe, with all that it extends laid under it.

    `metric` is a name of `ds_quantize.evaluate`, or `file.py:function`; empty: what fits the data.
    `auto` is its place in a search, the cheapest first; None: a search leaves it out.
    """

    name: str
    summary: str = ""
    steps: tuple[Method, ...] = ()
    metric: str = ""
    gate: Gate = Gate()
    auto: float | None = None

    def as_data(self) -> Fields:
        """The recipe as JSON can say it, each step with its settings, the defaults too."""
        said: Fields = msgspec.to_builtins(self)
        return said | {"steps": [_said(step) for step in self.steps]}


def load(name: str) -> Recipe:
    """The recipe of that name among those shipped, or in the file of that path.

    Raises RecipeError that names the file and the field.
    """
    path = _find(name)
    fields = _extended(path, ())
    return _recipe(fields, path)


def names() -> list[str]:
    """Of the recipes shipped."""
    return sorted(shipped())


def _find(name: str, beside: Path | None = None) -> Path:
    """`beside`: the recipe that names it, whose neighbours it may be."""
    there = shipped()
    if is_name(name):
        if name in there:
            return there[name]
        raise RecipeError(
            f"no recipe is called {name!r}{_hint(name, there)}; there are: "
            f"{', '.join(sorted(there))}; or give a file, such as ./{name}.yaml"
        )
    path = Path(name).expanduser()
    return path if beside is None else beside.parent / path


def _extended(path: Path, from_: tuple[Path, ...]) -> Fields:
    """The recipe's fields, over those of the one that it extends."""
    fields = read(path)
    parent = fields.pop("extends", None)
    fields.setdefault("name", path.stem)
    if parent is None:
        return fields
    if not isinstance(parent, str):
        raise RecipeError(f"{path}: extends is {parent!r}; it must be the name of one recipe")
    above = _find(parent, path)
    chain = (*from_, path)
    if above in chain:
        raise RecipeError(f"{path}: extends {parent!r}, which extends it in turn")
    return _over(_extended(above, chain), fields)


def _over(below: Fields, above: Fields) -> Fields:
    """The limits of the gate are taken over one by one, all else as a whole.

    A place in a search is not taken over, as it is that of one recipe.
    """
    merged = {key: value for key, value in below.items() if key != "auto"} | above
    gates = below.get("gate"), above.get("gate")
    if isinstance(gates[0], dict) and isinstance(gates[1], dict):
        merged["gate"] = gates[0] | gates[1]
    return merged


def _recipe(fields: Fields, path: Path) -> Recipe:
    steps = fields.get("steps")
    if not isinstance(steps, list) or not steps:
        raise RecipeError(f"{path}: steps is missing; it lists the methods to apply")
    parsed = tuple(_method(step, f"{path}: steps[{at}]") for at, step in enumerate(steps))
    _require_known(fields, path)
    rest = {key: value for key, value in fields.items() if key != "steps"}
    recipe = _converted(rest, Recipe, str(path))
    return msgspec.structs.replace(recipe, steps=parsed)


def _require_known(fields: Iterable[str], path: Path) -> None:
    known = (*Recipe.__struct_fields__, "extends")
    for field in fields:
        if field not in known:
            raise RecipeError(
                f"{path}: a recipe has no field {field!r}{_hint(field, known)}; "
                f"it may have: {', '.join(known)}"
            )


def _method(said: object, where: str) -> Method:
    """A step is the method's name, or a mapping with its settings too."""
    fields = {"method": said} if isinstance(said, str) else said
    if not isinstance(fields, dict) or "method" not in fields:
        raise RecipeError(f"{where}: {said!r} is not a step; give `method: NAME` and its settings")
    name = fields["method"]
    if name not in methods.METHODS:
        raise RecipeError(
            f"{where}: no method is called {name!r}{_hint(str(name), methods.METHODS)}; "
            f"there are: {', '.join(methods.METHODS)}"
        )
    method = methods.METHODS[name]
    settings = method.__struct_fields__
    for field in fields:
        if field != "method" and field not in settings:
            has = ", ".join(settings) or "none"
            raise RecipeError(
                f"{where}: {name} has no setting {field!r}{_hint(str(field), settings)}; "
                f"its settings are: {has}"
            )
    return _converted(fields, method, where)


def _converted(fields: object, kind: type[Made], where: str) -> Made:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        field = place.rstrip("`").lstrip(".")
        raise RecipeError(f"{where}: {f'{field}: ' if field else ''}{message}") from None


def _hint(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _said(method: Method) -> Fields:
    said: Fields = {"method": method.name}
    return said | {
        field: msgspec.to_builtins(getattr(method, field)) for field in method.__struct_fields__
    }
