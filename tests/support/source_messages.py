"""All texts in our source, as a reader of them would see them: … in place of what is filled in."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from ds_engines import errors

ROOT = Path(__file__).parents[2]
FOLDERS = ("server", "engines", "quantize")
_FILLED_IN = re.compile(r"%(?:\(\w+\))?[\d.]*[sdgfr]|\{[^}]*\}")


def messages() -> set[str]:
    """Each text of the source, and of what reads the command lines; those that are written in parts
    are joined, as Python does.
    """
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    files.append(Path(argparse.__file__))
    return {text for path in files for text in _texts(ast.parse(path.read_text()))}


def raised(file: str) -> set[str]:
    """The messages of the errors that a file raises or makes."""
    made = (node for node in ast.walk(ast.parse((ROOT / file).read_text())) if _is_error(node))
    return {text for node in made for text in _whole(node.args[0])}


def _is_error(node: ast.AST) -> TypeGuard[ast.Call]:
    name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    return bool(node.args) and getattr(errors, name, None) is not None if name else False


def _whole(message: ast.expr) -> list[str]:
    """The text; nothing where it is made elsewhere."""
    if isinstance(message, ast.JoinedStr):
        return [plain("".join(_part(value) for value in message.values))]
    return [message.value] if isinstance(message, ast.Constant) else []


def plain(text: str) -> str:
    """With one … for whatever is filled in."""
    return re.sub("…+", "…", text)


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield plain("".join(_part(value) for value in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield plain(_FILLED_IN.sub("…", node.value))


def _part(value: ast.expr) -> str:
    return str(value.value) if isinstance(value, ast.Constant) else "…"
