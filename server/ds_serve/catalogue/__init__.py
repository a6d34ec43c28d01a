"""Models that a name is enough for: what they are, and how to get one onto this machine.

entries()       every entry, in the table's order
get(name)       one entry
fetch(name)     the path of its model file, downloaded and verified if it is not here yet
    fetched(name)   that path if it is here already, else None
keep(path)      nobody removes from the cache what the path belongs to, as long as we live
"""

from __future__ import annotations

from ds_serve.catalogue.cache import keep
from ds_serve.catalogue.entries import Engine, Entry, File, entries, get, names, unknown
from ds_serve.catalogue.fetch import fetch, fetched
from ds_serve.catalogue.progress import Progress, progress_on

__all__ = [
    "Engine",
    "Entry",
    "File",
    "Progress",
    "entries",
    "fetch",
    "fetched",
    "get",
    "keep",
    "names",
    "progress_on",
    "unknown",
]
