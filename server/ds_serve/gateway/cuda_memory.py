"""CUDA shared memory: there are no regions, and a request for one is told why."""

from __future__ import annotations

from ds_engines.errors import NotFound, Unsupported


def unavailable(name: str) -> Unsupported:
    """Why a region cannot be registered."""
    return Unsupported(
        f"CUDA shared memory region {name!r} cannot be registered: CUDA shared memory is "
        "unavailable, this server uses no GPU; system shared memory works in its place"
    )


def check_status(name: str) -> None:
    """Raises NotFound where a region is asked for by name; "" asks for all, of which are none."""
    if name:
        raise NotFound(f"there is no CUDA shared memory region {name!r}")
