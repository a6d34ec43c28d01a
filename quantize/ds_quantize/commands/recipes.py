"""`ds-quantize recipes` and `methods`: what there is, and what each does."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from ds_quantize import methods, text
from ds_quantize.errors import RecipeError
from ds_quantize.method import Method
from ds_quantize.recipe import Recipe, load, names


def recipes(arguments: argparse.Namespace) -> int:
    """All of them in a table, or one with all that it sets."""
    console = text.console()
    if arguments.name is not None:
        _explain(load(arguments.name), console)
        return 0
    table = _table("recipe", "what it does", "steps", "needs")
    for recipe in map(load, names()):
        steps = ", ".join(step.name for step in recipe.steps)
        table.add_row(recipe.name, recipe.summary, steps, ", ".join(_needs(recipe.steps)))
    console.print(table)
    return 0


def show_methods(arguments: argparse.Namespace) -> int:
    """All of them in a table, or one with its settings."""
    console = text.console()
    if arguments.name is None:
        table = _table("method", "what it does", "on", "needs")
        for name, method in methods.METHODS.items():
            needs = ", ".join(_needs([method]))
            table.add_row(name, methods.summary(method), method.takes, needs)
        console.print(table)
        return 0
    if arguments.name not in methods.METHODS:
        there = ", ".join(methods.METHODS)
        raise RecipeError(f"no method is called {arguments.name!r}; there are: {there}")
    method = methods.METHODS[arguments.name]
    _say(console, inspect.cleandoc(method.__doc__ or ""))
    _say(console, f"on: {method.takes} -> {method.gives}")
    _say(console, f'library: pip install "ds-serve[{method.extra}]"')
    for field in msgspec.structs.fields(method):
        default = "must be given" if field.required else msgspec.to_builtins(_default(field))
        _say(console, f"  {text.settings({field.name: default})}")
    return 0


def _explain(recipe: Recipe, console: Console) -> None:
    _say(console, f"{recipe.name}: {recipe.summary}")
    for step in recipe.as_data()["steps"]:
        name = step.pop("method")
        _say(console, f"\n{name}: {methods.summary(methods.METHODS[name])}")
        for field, value in step.items():
            _say(console, f"  {text.settings({field: value})}")
    _say(console, f"\nmetric: {recipe.metric or 'what suits the data'}")
    _say(console, f"gate: {text.settings(msgspec.to_builtins(recipe.gate)) or 'no limits'}")
    if needs := _needs(recipe.steps):
        _say(console, f"needs: {', '.join(needs)}")


def _default(field: msgspec.structs.FieldInfo) -> Any:
    made = field.default_factory
    return field.default if made is msgspec.NODEFAULT else made()


def _needs(steps: Sequence[Method | type[Method]]) -> list[str]:
    found = {"calibration data": "needs_calibration", "labels": "needs_labels"}
    said = []
    for need, name in found.items():
        wanted = [getattr(step, name) for step in steps]
        if any(isinstance(each, property) for each in wanted):
            said.append(f"{need}, with some settings")
        elif any(wanted):
            said.append(need)
    return said


def _table(*columns: str) -> Table:
    table = Table()
    for at, column in enumerate(columns):
        table.add_column(column, no_wrap=at == 0)
    return table


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False)
