"""What TensorRT has measured of kernels, kept from one build to the next."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any


class Timings:
    """A timing cache that is read before a build and written after it."""

    def __init__(self, config: Any, path: Path) -> None:
        self._config, self._path = config, path

    def __enter__(self) -> None:
        known = self._path.read_bytes() if self._path.is_file() else b""
        cache = self._config.create_timing_cache(known) or self._config.create_timing_cache(b"")
        if cache is not None:
            self._config.set_timing_cache(cache, False)

    def __exit__(self, *error: object) -> None:
        cache = self._config.get_timing_cache()
        if error[0] is None and cache is not None:
            keep(self._path, bytes(cache.serialize()))


def keep(path: Path, data: bytes) -> None:
    """Write a file so that others see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)  # noqa: PTH105 - a name, not a path
