"""All methods, by the name that recipes call them. Each module here is one family of them."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from ds_quantize.method import Method


def _families() -> list[str]:
    return [f"{__name__}.{found.name}" for found in pkgutil.iter_modules(__path__)]


def _named(base: type[Method]) -> dict[str, type[Method]]:
    """Subclasses that have a handler, at any depth; those without are only there to be shared."""
    found: dict[str, type[Method]] = {}
    for method in base.__subclasses__():
        if method.handler:
            found[str(method.__struct_config__.tag)] = method
        found |= _named(method)
    return found


def _all() -> dict[str, type[Method]]:
    for family in _families():
        import_module(family)
    return dict(sorted(_named(Method).items()))


METHODS: dict[str, type[Method]] = _all()


def summary(method: type[Method]) -> str:
    """What it does: the first paragraph of its docstring, in one line."""
    return " ".join((method.__doc__ or "").strip().partition("\n\n")[0].split())
