"""Functions of users' Python files, named `file.py:function`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from ds_quantize.errors import DataError, QuantizeError

PREFIX = "ds_quantize_file_"
"""What the names of their modules begin with."""


def is_reference(text: str) -> bool:
    """Whether it has the form `file.py:function`."""
    file, colon, name = text.rpartition(":")
    return bool(colon and file.endswith(".py") and name)


def function(reference: str, error: type[QuantizeError] = DataError) -> Callable[..., Any]:
    """The function that `file.py:function` names. Raises `error`, naming what is wrong.

    The file is run as a module; it may import its neighbours.
    """
    file, _, name = reference.rpartition(":")
    module = _module(Path(file).expanduser(), error)
    found = getattr(module, name, None)
    if not callable(found):
        offered = sorted(key for key, value in vars(module).items() if _offered(key, value, module))
        raise error(f"{file} has no function {name!r}; it has: {', '.join(offered) or 'none'}")
    return found  # type: ignore[no-any-return]


def _module(path: Path, error: type[QuantizeError]) -> ModuleType:
    if not path.is_file():
        raise error(f"there is no file {path}")
    # A name of its own: two files of the same name must not be taken for each other.
    name = f"{PREFIX}{path.stem}_{abs(hash(str(path.resolve()))):x}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error(f"{path} cannot be run as Python")
    module = module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as failed:
        del sys.modules[name]
        raise error(f"{path} fails: {type(failed).__name__}: {failed}") from failed
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _offered(name: str, value: object, module: ModuleType) -> bool:
    return (
        callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    )
