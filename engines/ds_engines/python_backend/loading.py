"""Imports a model.py, and says what is wrong with one that cannot be."""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ds_engines.errors import LoadError, ServeError

log = logging.getLogger(__name__)

CLASS = "TritonPythonModel"
MODULES = Path(__file__).with_name("modules")
"""Holds what only a model.py imports."""

Result = TypeVar("Result")


def model_class(file: Path) -> type[Any]:
    """The class in a file `<model>/<version>/model.py`. Raises LoadError."""
    folder = file.parent
    for place in (MODULES, folder, folder.parent):
        sys.path.append(str(place))
    module = guarded(file, "", lambda: importlib.import_module(f"{folder.name}.{file.stem}"))
    if Path(getattr(module, "__file__", "") or "").resolve() != file.resolve():
        raise LoadError(f"{file}: another module is called {module.__name__!r}")
    found = getattr(module, CLASS, None)
    if not isinstance(found, type):
        raise LoadError(f"{file} has no class {CLASS}")
    if not callable(getattr(found, "execute", None)):
        raise LoadError(f"{file}: {CLASS} has no method execute")
    return found


def guarded(file: Path, what: str, call: Callable[[], Result]) -> Result:
    """What `call` returns. Raises LoadError naming file, line and error; `what` failed."""
    try:
        return call()
    except ServeError:
        raise
    except (Exception, SystemExit) as error:
        log.error("%s: %s failed", file, what or "the import", exc_info=error)
        said = f"{what}: " if what else ""
        raise LoadError(f"{_place(file, error)}: {said}{described(error)}") from error


def described(error: BaseException) -> str:
    """The kind of error and its message, in one line for an error of the syntax."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(file: Path, error: BaseException) -> str:
    """Where in the model's own files it happened: file and line."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}:{error.lineno}"
    home = str(file.parent.parent)
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(home)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else str(file)
