"""What the file of keys says.

    [keys.team-a]
    sha256 = "…"                   # of the key; the key itself is nowhere
    models = ["magika", "smollm*"] # without: all
    requests_per_second = 50       # without: as many as it likes
    burst = 100                    # at once, after a pause; without: those of a second
    concurrency = 8                # under way at one time; without: any number
    admin = false                  # may load and unload models and change settings
    shared_memory = false          # may have tensors read from, and put into, shared memory
    priority = 0                   # of its texts; higher waits longer

or the same as JSON. Keys are random and long, so that one round of SHA-256 protects them: there is
nothing to guess from.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from ds_engines.errors import ConfigError
from ds_serve.security.keys import Key, Keys

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_NEXT = re.compile(r"^\s*\[|}", re.MULTILINE)
"""Where the next key begins."""


def parse(text: str, file: str) -> Keys:
    """Raises ConfigError naming the line and the field of what is wrong. JSON where `file` ends
    in .json, TOML otherwise.
    """
    return Keys(_Reader(text, file).read())


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file

    def read(self) -> list[Key]:
        tables = self._syntax().get("keys")
        if not isinstance(tables, dict) or not tables:
            raise ConfigError(f"{self._file}: there is no key in it: it needs [keys.NAME] tables")
        keys = [self._key(name, fields) for name, fields in tables.items()]
        names: dict[bytes, str] = {}
        for key in keys:
            other = names.setdefault(key.digest, key.name)
            if other != key.name:
                raise self._wrong(key.name, "sha256", f"is that of key {other!r} too")
        return keys

    def _syntax(self) -> dict[str, Any]:
        try:
            whole = (json if self._file.endswith(".json") else tomllib).loads(self._text)
        except ValueError as error:  # of both parsers; they say the line
            raise ConfigError(f"{self._file}: {error}") from None
        others = sorted(whole.keys() - {"keys"}) if isinstance(whole, dict) else ["a list"]
        if others:
            raise ConfigError(
                f"{self._file}: it must hold `keys` and no other, not {', '.join(others)}"
            )
        return dict(whole)

    def _key(self, name: str, fields: object) -> Key:
        if not isinstance(fields, dict):
            raise self._wrong(name, "", f"is {fields!r}; it must be a table")
        if unknown := sorted(fields.keys() - _CHECKS.keys()):
            raise self._wrong(name, unknown[0], f"is unknown; known are {', '.join(_CHECKS)}")
        if "sha256" not in fields:
            raise self._wrong(name, "sha256", "is missing")
        for field, value in fields.items():
            holds, right = _CHECKS[field]
            if not holds(value):
                # What stands in place of a digest may be the key itself.
                shown = "" if field == "sha256" else f"is {value!r}; it "
                raise self._wrong(name, field, f"{shown}must be {right}")
        rate = float(fields.get("requests_per_second", 0))
        if "burst" in fields and not rate:
            raise self._wrong(name, "burst", "is given without requests_per_second")
        return _made(name, fields, rate)

    def _wrong(self, name: str, field: str, what: str) -> ConfigError:
        return ConfigError(
            f"{self._file}, line {self._line(name, field)}: key {name!r}: {field} {what}"
        )

    def _line(self, name: str, field: str) -> int:
        """Where the field of that key stands, or the key where it has none such."""
        quoted = rf"""["']?{re.escape(name)}["']?"""
        opening = re.compile(rf"""keys\s*\.\s*{quoted}\s*[\]=]|{quoted}\s*[:=]""")
        start = match.end() if (match := opening.search(self._text)) else 0
        following = _NEXT.search(self._text, start)
        end = following.start() if following else len(self._text)
        inside = re.compile(rf"\b{re.escape(field)}\b").search(self._text, start, end)
        place = inside.start() if field and inside else start
        return self._text.count("\n", 0, place) + 1


def _made(name: str, fields: Mapping[str, Any], rate: float) -> Key:
    return Key(
        name=name,
        digest=bytes.fromhex(fields["sha256"]),
        models=tuple(fields.get("models", ("*",))),
        requests_per_second=rate,
        burst=fields.get("burst", math.ceil(rate)),
        concurrency=fields.get("concurrency", 0),
        admin=fields.get("admin", False),
        shared_memory=fields.get("shared_memory", False),
        priority=fields.get("priority", 0),
    )


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _is_rate(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_rank(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


_CHECKS = {
    "sha256": (_is_digest, "the 64 hexadecimal digits of a SHA-256"),
    "models": (_is_names, "a list of model names, in which * stands for anything"),
    "requests_per_second": (_is_rate, "a number above 0"),
    "burst": (_is_count, "a whole number above 0"),
    "concurrency": (_is_count, "a whole number above 0"),
    "admin": (_is_flag, "true or false"),
    "shared_memory": (_is_flag, "true or false"),
    "priority": (_is_rank, "a whole number, 0 or above"),
}
