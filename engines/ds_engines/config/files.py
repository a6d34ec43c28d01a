"""Files that a configuration names: they lie in a folder beside it."""

from __future__ import annotations

from pathlib import Path, PurePath

from ds_engines.errors import ConfigError


def beside(folder: Path, name: str, where: str) -> str:
    """The path of a file of that name in `folder`. Raises ConfigError where it is not there."""
    if PurePath(name).name != name or name in ("", ".", ".."):
        raise ConfigError(f"{where} is {name!r}; it must be the name of a file in {folder}")
    file = folder / name
    if not file.is_file():
        raise ConfigError(f"{where} is {name!r}, but there is no file {file}")
    return str(file)
