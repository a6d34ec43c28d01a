"""Logins of OCI registries, where Docker, Podman and ORAS keep them."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import msgspec

from ds_engines.errors import ConfigError

DOCKER_HUB = "https://index.docker.io/v1/"
"""How Docker Hub is called in these files."""

_TOKEN_USER = "<token>"  # noqa: S105 - what a helper says instead of a name
_SECONDS = 30


class Login(msgspec.Struct, rename="pascal", frozen=True):
    """As a credential helper prints it."""

    username: str
    secret: str


class _Auth(msgspec.Struct, frozen=True):
    auth: str = ""


class _Config(msgspec.Struct, rename="camel", frozen=True):
    auths: dict[str, _Auth] = {}
    creds_store: str = ""
    cred_helpers: dict[str, str] = {}


def basic(login: Login) -> str:
    """The value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{login.username}:{login.secret}".encode()).decode()


def key_for(host: str) -> Login | None:
    """The login for a registry; None where there is none. Raises ConfigError for a broken file."""
    names = (DOCKER_HUB, host) if host == "docker.io" else (host, f"https://{host}")
    for path in _files():
        config = _read(path)
        for name in names:
            helper = config.cred_helpers.get(name) or config.creds_store
            if helper and (login := _ask(helper, name)):
                return login
            if (found := config.auths.get(name)) and found.auth:
                return _decoded(path, found.auth)
    return None


def _files() -> list[Path]:
    own = os.environ.get("DOCKER_CONFIG")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    places = [
        Path(os.environ["REGISTRY_AUTH_FILE"]) if "REGISTRY_AUTH_FILE" in os.environ else None,
        (Path(own) if own else Path.home() / ".docker") / "config.json",
        Path(runtime) / "containers/auth.json" if runtime else None,
    ]
    return [place for place in places if place is not None and place.is_file()]


def _read(path: Path) -> _Config:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Config)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"the registry logins in {path} cannot be read: {error}") from None


def _decoded(path: Path, text: str) -> Login:
    try:
        user, _, secret = base64.b64decode(text, validate=True).decode().partition(":")
    except ValueError:
        raise ConfigError(f"a registry login in {path} is not in base64") from None
    return Login(user, secret)


def _ask(helper: str, name: str) -> Login | None:
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"], input=name.encode(), capture_output=True,
            timeout=_SECONDS, check=False,
        )  # fmt: skip
        login = msgspec.json.decode(done.stdout, type=Login) if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, msgspec.MsgspecError):
        return None
    # An identity token is not a password; it takes a way of its own to use it.
    return None if login is None or login.username == _TOKEN_USER else login
