"""Models that other servers have: which address, which model there, and whose key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from ds_engines.errors import ConfigError

ENGINE = "upstream"
ENVIRONMENT = "env:"
SOCKET = "unix:"

_ADDRESS = re.compile(r"(https?://|unix:)", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Upstream(msgspec.Struct, frozen=True, array_like=True):
    """A model of an OpenAI-compatible server, or of one of KServe's.

    `url` is the address that its paths such as /chat/completions follow, as https://host/v1, or
    https://host/v2 where it takes tensors, or unix:/path/of/socket, or several of them with commas
    between. `model` is the name
    that it has there; "" where it is the same. `key` says where its key is: a file's path or
    env:VARIABLE; "" where it needs none.
    """

    url: str
    model: str = ""
    key: str = ""

    @property
    def urls(self) -> list[str]:
        """Of all servers that have it."""
        return self.url.split(",")

    @property
    def remote(self) -> bool:
        """Whether a request to it leaves this machine, as far as its address tells."""
        return not self.url.startswith(SOCKET)

    def secret(self) -> str:
        """The key as it is now. Raises ConfigError where it is not there, or no header."""
        if not self.key:
            return ""
        found = _read(self.key)
        if not found or not found.isascii() or not found.isprintable():
            raise ConfigError(f"the key in {self.key} must be one line of printable ASCII")
        return found


def is_address(value: str) -> bool:
    """Whether it names a server, and not a file on one."""
    return _ADDRESS.match(value) is not None and not value.endswith((".onnx", ".gguf"))


def has_tensors(found: Upstream) -> bool:
    """Whether its address is one of KServe's, which end with /v2."""
    return all(url.rstrip("/").endswith("/v2") for url in found.urls) and found.remote


def parse(address: str) -> Upstream:
    """`https://host/v1#model-id` or `unix:/path#model-id`, or several addresses with commas between
    that have the model under one name. Raises ConfigError.
    """
    urls, _, model = address.partition("#")
    each = [_url(url, address) for url in urls.split(",")]
    if len({url.startswith(SOCKET) for url in each}) > 1:
        raise ConfigError(f"--model {address}: its servers are here and elsewhere; name all alike")
    return Upstream(",".join(each), model)


def _url(url: str, address: str) -> str:
    if url.lower().startswith(SOCKET):
        path = url[len(SOCKET) :]
        if not path.startswith("/"):
            raise ConfigError(f"--model {address}: unix: needs the whole path of a socket")
        return SOCKET + path
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ConfigError("--model: an address holds no key: give it by --upstream-key NAME=FILE")
    if not parts.hostname or parts.query:
        raise ConfigError(f"--model {address}: an address is https://HOST/PATH#MODEL-ID")
    return url.rstrip("/")


def keys(given: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """Where the key of each upstream model is, of `--upstream-key NAME=FILE|env:VARIABLE`.

    Raises ConfigError for one that is not there, or that no model of `names` needs.
    """
    known = sorted(names)
    found: dict[str, str] = {}
    for argument in given:
        name, equals, where = argument.partition("=")
        if not equals or not where:
            # What was given may be a key itself.
            raise ConfigError("--upstream-key takes NAME=FILE or NAME=env:VARIABLE")
        if name not in known:
            has = ", ".join(known) or "none"
            raise ConfigError(f"--upstream-key {name}=…: no upstream model is named so; of {has}")
        if not where.startswith(ENVIRONMENT):
            where = str(Path(where).expanduser().absolute())
        Upstream("", key=where).secret()
        found[name] = where
    return found


def fallbacks(given: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """Who stands in for whom, of `--fallback MODEL=OTHER`. Raises ConfigError for models that are
    not text models of this server, and for a chain that comes back to where it was.
    """
    known = set(names)
    found: dict[str, str] = {}
    for argument in given:
        name, _, other = argument.partition("=")
        for each in (name, other):
            if each not in known:
                has = ", ".join(sorted(known)) or "none"
                raise ConfigError(
                    f"--fallback {argument}: there is no text model {each!r}; there are: {has}"
                )
        if name in found:
            raise ConfigError(f"--fallback {argument}: {name} falls back to {found[name]} already")
        found[name] = other
    for name in found:
        _require_end(name, found)
    return found


def _require_end(name: str, found: Mapping[str, str]) -> None:
    seen = [name]
    while (following := found.get(seen[-1])) is not None:
        if following in seen:
            chain = " -> ".join([*seen, following])
            raise ConfigError(f"--fallback goes round in a circle: {chain}")
        seen.append(following)


def _read(where: str) -> str:
    if where.startswith(ENVIRONMENT):
        variable = where[len(ENVIRONMENT) :]
        if not _VARIABLE.fullmatch(variable):
            raise ConfigError("--upstream-key NAME=env:VARIABLE takes a variable's name, not a key")
        if variable not in os.environ:
            raise ConfigError(f"--upstream-key: there is no environment variable {variable}")
        return os.environ[variable].strip()
    try:
        return Path(where).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"--upstream-key {where}: it cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"--upstream-key {where}: it is not text") from None
