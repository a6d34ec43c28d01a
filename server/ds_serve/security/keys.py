"""API keys: what each may do, and how one is found."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

PREFIX = "ds-"
_ALL = ("*",)
_INDEXED = 8
"""Bytes of a digest by which a key is looked up before it is compared."""


@dataclass(frozen=True, slots=True)
class Key:
    """What the owner of a key may do. 0 is no limit."""

    name: str
    digest: bytes
    models: tuple[str, ...] = _ALL
    requests_per_second: float = 0.0
    burst: int = 0
    concurrency: int = 0
    admin: bool = False
    shared_memory: bool = False
    priority: int = 0

    def allows(self, model: str) -> bool:
        return self.models == _ALL or any(fnmatchcase(model, each) for each in self.models)

    @property
    def limited(self) -> bool:
        return bool(self.requests_per_second or self.concurrency)


class Keys:
    """All keys of a file. What a guess tells by its time is the start of a digest at most."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._found: dict[bytes, list[Key]] = {}
        self._count = 0
        for key in keys:
            self._found.setdefault(key.digest[:_INDEXED], []).append(key)
            self._count += 1

    def __len__(self) -> int:
        return self._count

    def find(self, secret: bytes) -> Key | None:
        return self.of_digest(hashlib.sha256(secret).digest())

    def named(self, name: str) -> Key | None:
        return next((k for keys in self._found.values() for k in keys if k.name == name), None)

    def of_digest(self, digest: bytes) -> Key | None:
        for key in self._found.get(digest[:_INDEXED], ()):
            if hmac.compare_digest(key.digest, digest):
                return key
        return None


def make() -> tuple[str, str]:
    """A new key, and its SHA-256 in hex."""
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, hashlib.sha256(secret.encode()).hexdigest()


def entry(name: str, digest: str) -> str:
    """What to write into the file for a new key."""
    return f'[keys.{json.dumps(name)}]\nsha256 = "{digest}"\n'
