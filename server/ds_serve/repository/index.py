"""The repository index, in Triton's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ds_serve.transport.messages import ModelState
from ds_serve.transport.orders import IndexEntry

READY = "READY"
UNLOADING = "UNLOADING"
UNAVAILABLE = "UNAVAILABLE"
STATES = {"loading": "LOADING", "ready": READY, "restarting": "LOADING"}
"""Whatever else a worker is, its model is not available."""


def index(
    states: Iterable[ModelState],
    going: Iterable[ModelState],
    known: Iterable[str],
    unloaded: Mapping[str, Sequence[str]],
    ready: bool,
) -> list[IndexEntry]:
    """One entry for each version that is served, was served, or finishes its last requests; and
    one without a version for each other model in `known`.
    """
    found = {
        (s.name, s.version): IndexEntry(
            s.name, s.version, STATES.get(s.state, UNAVAILABLE), s.reason
        )
        for s in states
    }
    for state in going:
        key = (state.name, state.version)
        found.setdefault(key, IndexEntry(*key, UNLOADING))
    for name, versions in unloaded.items():
        for version in versions:
            found.setdefault((name, version), IndexEntry(name, version, UNAVAILABLE, "unloaded"))
    named = {name for name, _ in found}
    entries = [*found.values(), *(IndexEntry(name) for name in known if name not in named)]
    return [entry for entry in entries if entry.state == READY or not ready]
