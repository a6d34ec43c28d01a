"""What a model can be pulled from, whatever it is: a list of files, each readable from anywhere."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue.entries import names, unknown

HUB = "hf://"
OCI = "oci://"
HUB_ID = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(@[^@\s]+)?")

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class Unreachable(LoadError):
    """The source does not answer now, or must not be asked: a copy from before would do."""


class Dropped(Exception):
    """The connection broke, or the source is busy: reading on from where it stopped may help."""


class Part(NamedTuple):
    """One file of a source, `path` below the model's folder.

    `key` is what the source finds it by; `size` is in bytes, -1 where the source does not say.
    `sha256`, and `git` (the id that git gives a file), are what the source states, if it does;
    `stamp` changes when the file does. An `archive` is a tar file that stands for what it holds.
    """

    path: str
    key: str
    size: int = -1
    sha256: str = ""
    git: str = ""
    stamp: str = ""
    archive: bool = False

    @property
    def certain(self) -> bool:
        """Whether two reads of it are known to be of the same content."""
        return bool(self.sha256 or self.git or self.stamp)


class Listing(NamedTuple):
    """All files as they are now; `revision` is what the source calls this state, if anything."""

    revision: str
    parts: tuple[Part, ...]

    @property
    def digest(self) -> str:
        """What tells two states apart."""
        said = sorted((p.path, p.size, p.sha256 or p.git or p.stamp) for p in self.parts)
        return hashlib.sha256(repr((self.revision, said)).encode()).hexdigest()[:16]

    @property
    def size(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(max(part.size, 0) for part in self.parts)


class Source(Protocol):
    """`where` is what a person reads and gives again, without any secret; `name` what the model
    is called unless somebody says otherwise.
    """

    where: str
    name: str

    def list(self) -> Listing:
        """Its files. Raises Unreachable, and LoadError that says what is wrong."""

    def read(self, part: Part, offset: int) -> tuple[int, Iterator[bytes]]:
        """Where reading begins, which is at `offset` or at 0, and what comes from there on.

        Raises Dropped, LoadError; the iterator as well.
        """


class Patterns(NamedTuple):
    """Which files are wanted, by shell patterns over path or name; all where none are given."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def of(self, listing: Listing, where: str) -> Listing:
        """Those files; hidden ones never. Raises LoadError where none is left."""
        parts = tuple(part for part in listing.parts if self._wants(part))
        if not parts:
            which = "no file that is wanted" if self else "no file"
            raise LoadError(f"{where} holds {which}; there are: {_some(listing.parts)}")
        return Listing(listing.revision, parts)

    def _wants(self, part: Part) -> bool:
        path = safe(part.path)
        if any(each.startswith(".") for each in path.parts):
            return False
        chosen = not self.include or _matches(path, self.include)
        return chosen and not _matches(path, self.exclude)


def _matches(path: PurePosixPath, patterns: Iterable[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(str(path), each) or fnmatch.fnmatchcase(path.name, each)
        for each in patterns
    )


def _some(parts: Sequence[Part]) -> str:
    shown = [part.path for part in parts[:8]]
    return ", ".join([*shown, "..."] if len(parts) > len(shown) else shown) or "none"


def safe(path: str) -> PurePosixPath:
    """A path as a source gives it. Raises LoadError for one that would leave the model's folder."""
    found = PurePosixPath(path)
    bad = found.is_absolute() or ".." in found.parts or not found.parts
    if bad or not set("\\\0").isdisjoint(path):
        raise LoadError(f"the source has a file called {path!r}, which cannot be stored")
    return found


def model_name(text: str) -> str:
    """A name that a model may have, out of any text."""
    return _NOT_IN_A_NAME.sub("-", text).strip("-.") or "model"


def parse(text: str) -> Source:
    """The source that `text` means. Raises ConfigError where it means none."""
    # Each kind needs a library that the others do without.
    if text.startswith(OCI):
        from ds_serve.catalogue.oci import Registry  # noqa: PLC0415

        return Registry(text)
    if text.startswith(HUB) or _is_hub_id(text):
        from ds_serve.catalogue.hub import Hub  # noqa: PLC0415

        return Hub(text.removeprefix(HUB))
    if "://" in text:
        from ds_serve.catalogue.addresses import Address  # noqa: PLC0415

        return Address(text)
    if text in names():
        from ds_serve.catalogue.packaged import Packaged  # noqa: PLC0415

        return Packaged(text)
    path = Path(text).expanduser()
    if not path.exists():
        raise ConfigError(
            f"{unknown(text)} (nor is it a file, a folder, an address or an id of the Hugging Face "
            "hub, such as org/name)"
        )
    from ds_serve.catalogue.addresses import Address  # noqa: PLC0415

    return Address(path.absolute().as_uri(), str(path.absolute()))


def _is_hub_id(text: str) -> bool:
    return bool(HUB_ID.fullmatch(text)) and not Path(text).exists()
