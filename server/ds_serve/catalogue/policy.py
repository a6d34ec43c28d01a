"""The `version_policy` of a config.pbtxt, changed in place: all else stays as it was written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ds_engines.errors import ConfigError

_FIELD = "version_policy"
_TOKEN = re.compile(
    r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[A-Za-z_][\w]*|[{}<>\[\]]|\s+|.""",
    re.DOTALL,
)


def text_of(versions: Sequence[int]) -> str:
    """The field that has these versions served, and no others."""
    listed = ", ".join(map(str, sorted(versions)))
    return f"{_FIELD}: {{ specific: {{ versions: [ {listed} ] }} }}"


def with_versions(text: str, versions: Sequence[int]) -> str:
    """A config.pbtxt with that field in place of the one that it has, or at its end."""
    found = _span(text)
    if found is None:
        between = "" if not text or text.endswith("\n") else "\n"
        return f"{text}{between}{text_of(versions)}\n"
    begin, end = found
    return text[:begin] + text_of(versions) + text[end:]


def _span(text: str) -> tuple[int, int] | None:
    """Where the field begins and ends; None where there is none."""
    depth, begin = 0, None
    for token in _TOKEN.finditer(text):
        said = token[0]
        if depth == 0 and said == _FIELD:
            begin = token.start()
        depth += (said in "{<[") - (said in "}>]") if len(said) == 1 else 0
        if begin is not None and depth == 0 and said in ("}", ">"):
            return begin, token.end()
    return None


def require_same(before: Path | None, after: Path) -> None:
    """Raise ConfigError where two configurations differ in more than their policy, so that a file
    which was understood wrongly is never put in place.
    """
    # It takes some time to import, and few commands need it.
    from ds_engines import config_pbtxt  # noqa: PLC0415

    old = config_pbtxt.read(before) if before else None
    new = config_pbtxt.read(after)
    new.ClearField(_FIELD)
    if old is not None:
        old.ClearField(_FIELD)
    if old != new if old is not None else new.ByteSize():
        raise ConfigError(
            f"the {_FIELD} of {before} cannot be changed without changing more: write it yourself"
        )
