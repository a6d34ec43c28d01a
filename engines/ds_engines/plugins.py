"""Engines that other packages bring, found by their entry points; nothing of them is imported here.

A package registers an engine, and the endings of files that it runs, in its pyproject.toml:

    [project.entry-points."ds_serve.engines"]
    my-engine = "my_package.engine:MyEngine"

    [project.entry-points."ds_serve.formats"]
    npz = "my_package.engine:MyEngine"

The class is made as ours are, of a ModelSpec and EngineOptions, and is a BatchEngine.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points

from ds_engines.errors import ConfigError

ENGINES = "ds_serve.engines"
FORMATS = "ds_serve.formats"


@functools.cache
def engines() -> dict[str, str]:
    """Name to `module:class`. Raises ConfigError where two packages bring one name."""
    return _distinct(ENGINES)


@functools.cache
def formats() -> dict[str, str]:
    """From a file's ending, such as `.npz`, to the engine's name. Raises ConfigError where two
    packages bring one ending, or one of a class that is registered as no engine.
    """
    names = {value: name for name, value in engines().items()}
    found = {}
    for ending, value in _distinct(FORMATS).items():
        if value not in names:
            raise ConfigError(
                f"the entry point {ending!r} of {FORMATS} is {value}, which no entry point of "
                f"{ENGINES} names"
            )
        found[f".{ending.lower().lstrip('.')}"] = names[value]
    return found


def _distinct(group: str) -> dict[str, str]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise ConfigError(
                f"two packages bring {point.name!r} of {group}: {other.value} and {point.value}"
            )
    return {name: point.value for name, point in found.items()}
