"""A catalogue model as a source, for those who want it elsewhere than in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ds_serve.catalogue.entries import get
from ds_serve.catalogue.fetch import fetch
from ds_serve.catalogue.progress import Progress
from ds_serve.catalogue.sources import Listing, Part
from ds_serve.catalogue.web import PIECE


class Packaged:
    """The entry of that name."""

    def __init__(self, name: str) -> None:
        self.entry = get(name)
        self.where = self.name = name
        self.progress = Progress()
        self.root: Path | None = None
        self._folder = Path()

    def list(self) -> Listing:
        self._folder = fetch(self.entry, progress=self.progress, root=self.root).parent
        entry = self.entry
        parts = (Part(f.name, f.name, f.size, f.sha256) for f in entry.files)
        return Listing(f"{entry.package}-{entry.version}", tuple(parts))

    def read(self, part: Part, offset: int) -> tuple[int, Iterator[bytes]]:
        return offset, _pieces(self._folder / part.key, offset)


def _pieces(path: Path, offset: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while piece := file.read(PIECE):
            yield piece
