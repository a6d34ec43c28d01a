"""Which optional packages are there."""

from __future__ import annotations

from importlib.util import find_spec


def installed(module: str) -> bool:
    """Whether it could be imported. Packages above it are, for that is where it would be found;
    of a namespace, such as `opentelemetry`, another package may have brought a part.
    """
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
