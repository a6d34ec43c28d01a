"""The files that recipes are written in: YAML."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ds_quantize.errors import RecipeError

SHIPPED = Path(__file__).parent / "recipes"

_ENDINGS = (".yaml", ".yml")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 1e-4 is a number and no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = []
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                message = f"{name!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            seen.append(name)
        made: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return made


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+"),
    list("-+.0123456789"),
)


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name; `_base` is only there to be extended."""
    return {path.stem: path for path in sorted(SHIPPED.glob("[!_]*.yaml"))}


def is_name(given: str) -> bool:
    """Whether it is a name rather than a path, which has a slash or ends as YAML files do."""
    return bool(_NAME.fullmatch(given))


def read(path: Path) -> dict[str, Any]:
    """The fields of a recipe's file. Raises RecipeError naming file and line."""
    if path.suffix not in _ENDINGS:
        raise RecipeError(f"{path} is not a recipe: its name must end with .yaml")
    try:
        text = path.read_text(encoding="utf-8")
        fields = yaml.load(text, _Loader)  # noqa: S506 - a subclass of the safe loader
    except OSError as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file: byte {error.start} is not UTF-8") from None
    except yaml.YAMLError as error:
        raise RecipeError(_explained(path, error)) from None
    if not isinstance(fields, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of fields, such as `steps:`")
    wrong = next((key for key in fields if not isinstance(key, str)), None)
    if wrong is not None:
        raise RecipeError(f"{path}: the field {wrong!r} must be a word")
    return fields


def _explained(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark is not None else ""
    return f"{path}{line}: {getattr(error, 'problem', None) or error}"
