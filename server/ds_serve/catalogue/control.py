"""Telling a running server to follow its repository, and waiting until it has."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from ds_engines.errors import LoadError
from ds_serve.catalogue import web
from ds_serve.catalogue.sources import Dropped

KEY = "DS_SERVE_KEY"
"""Environment variable with an administrator's key of the server."""

LOADS = 900.0
"""Seconds that a server may take to load a model."""

_POLLS = "polling is enabled"
_BETWEEN = 0.25


def follow(server: str, model: str, versions: Sequence[int]) -> None:
    """Have the server at an URL serve these versions: it is told to load the model, or, where it
    looks at the repository by itself, waited for. Raises LoadError with what it says.
    """
    try:
        _call(server, f"/v2/repository/models/{model}/load", {})
    except LoadError as error:
        if _POLLS not in str(error):
            raise
        _wait(server, model, versions)


def _wait(server: str, model: str, versions: Sequence[int]) -> None:
    deadline = time.monotonic() + LOADS
    states: dict[str, str] = {}
    while time.monotonic() < deadline:
        entries = _call(server, "/v2/repository/index", {})
        own = [entry for entry in entries if entry["name"] == model]
        states = {entry.get("version", ""): entry.get("state", "") for entry in own}
        if {version for version, state in states.items() if state == "READY"} == set(
            map(str, versions)
        ):
            return
        time.sleep(_BETWEEN)
    raise LoadError(f"{server} does not serve {model} in the versions {list(versions)}: {states}")


def _call(server: str, path: str, body: Any) -> Any:
    key = os.environ.get(KEY)
    try:
        answer = web.post(
            server.rstrip("/") + path,
            msgspec.json.encode(body),
            authorization=f"Bearer {key}" if key else "",
            timeout=LOADS,
        )
    except Dropped as error:
        raise LoadError(f"the server {server} does not answer: {error}") from None
    except web.Refused as error:
        raise LoadError(f"{server}: {_said(error)}") from None
    return msgspec.json.decode(answer) if answer.strip() else None


def _said(error: web.Refused) -> str:
    try:
        found = msgspec.json.decode(error.said, type=dict[str, Any])
    except msgspec.MsgspecError:
        return str(error)
    said = found.get("error", found.get("detail", ""))
    return said if isinstance(said, str) and said else str(error)
