"""Files and folders at an address: S3, Google Cloud Storage, Azure, HTTP, this machine, and
whatever else fsspec knows.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator
from email.message import Message
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue import web
from ds_serve.catalogue.sources import Dropped, Listing, Part, Unreachable, model_name, safe

DEEPEST = 8
"""Folders below one another that are looked into."""

LONGEST_SUFFIX = 9
"""Of a file's format; what is longer is a part of the name."""

BLOCK = 8 << 20
"""Bytes that a file system is asked for at once."""

STAMPS = (
    "ETag", "etag", "md5Hash", "md5", "Content-MD5", "content_settings", "generation",
    "LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created",
)  # fmt: skip
"""What file systems call that which changes with a file."""

_NOT_THERE = 404
_NO_ACCESS = (401, 403)
_IN_URLS = "/:%?&=+,;@~!*'()[]"
"""What is not quoted in an address of an index page, which may be quoted already."""

_LINKS = frozenset("?#")
"""Index pages have links by which they are sorted."""


class Address:
    """`url` as fsspec takes it; one of a web server that ends in a slash is a folder whose index
    page lists its files. `where`: what a person has called it, if not so.
    """

    def __init__(self, url: str, where: str = "") -> None:
        self._url = url
        self._web = urlsplit(url).scheme in ("http", "https")
        self.where = where or _public(url)
        path = PurePosixPath(unquote(urlsplit(url).path).rstrip("/") or urlsplit(url).netloc)
        self._file = path.name
        self.name = _name(path)
        self._tags: dict[str, str] = {}

    def list(self) -> Listing:
        if self._web and not urlsplit(self._url).path.endswith("/"):
            return Listing("", (self._on_web(self._file, self._url),))
        fs, root = self._system()
        try:
            about = {"type": "directory"} if self._web else fs.info(root)
            if about["type"] != "directory":
                return Listing("", (_part(self._file, about),))
            found = fs.find(root, maxdepth=DEEPEST, detail=True)
        except Exception as error:  # each file system has its own
            raise self._failed(error) from None
        parts = [self._below(str(root), key, about) for key, about in sorted(found.items())]
        return Listing("", tuple(part for part in parts if part))

    def _below(self, root: str, key: str, about: dict[str, Any]) -> Part | None:
        path = key[len(root.rstrip("/")) + 1 :]
        if path.endswith("/") or (self._web and not _LINKS.isdisjoint(path)):
            return None
        return (
            self._on_web(unquote(path), quote(key, _IN_URLS)) if self._web else _part(path, about)
        )

    def _on_web(self, path: str, url: str) -> Part:
        try:
            headers = web.head(url)
        except Dropped as error:
            raise Unreachable(f"{self.where} cannot be reached: {error}") from None
        except web.Refused as error:
            raise self._refused(error) from None
        self._tags[url] = tag = headers.get("ETag", "")
        length = headers.get("Content-Length", "")
        return Part(
            path=str(safe(path)),
            key=url,
            size=int(length) if length.isdecimal() else -1,
            sha256=_stated(headers),
            stamp=tag or headers.get("Last-Modified", ""),
        )

    def read(self, part: Part, offset: int) -> tuple[int, Iterator[bytes]]:
        if self._web:
            try:
                return web.stream(part.key, offset, tag=self._tags.get(part.key, ""))
            except web.Refused as error:
                raise self._refused(error) from None
        try:
            file = self._system()[0].open(part.key, "rb", block_size=BLOCK)
            begins = offset if offset and file.seekable() else 0
            file.seek(begins)
        except (LoadError, ConfigError, FileNotFoundError, PermissionError) as error:
            raise self._failed(error) from None
        except Exception as error:
            raise Dropped(self._said(error)) from None
        return begins, self._pieces(file)

    def _pieces(self, file: Any) -> Iterator[bytes]:
        try:
            with file:
                while piece := file.read(web.PIECE):
                    yield piece
        except GeneratorExit:
            raise
        except Exception as error:
            raise Dropped(self._said(error)) from None

    def _system(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs  # noqa: PLC0415 - takes a while to import

            fs, root = url_to_fs(self._url, use_listings_cache=False)
        except ImportError as error:
            raise ConfigError(
                f"{self.where} cannot be read: {error}; s3:// needs the package s3fs, gs:// gcsfs, "
                "az:// adlfs"
            ) from None
        except ValueError as error:
            raise ConfigError(f"{self.where} cannot be read: {error}") from None
        return fs, str(root)

    def _failed(self, error: Exception) -> LoadError:
        if isinstance(error, (ConfigError, LoadError)):
            return error  # type: ignore[return-value]
        if isinstance(error, FileNotFoundError):
            return LoadError(f"there is nothing at {self.where}")
        kind = Unreachable if isinstance(error, (ConnectionError, TimeoutError)) else LoadError
        return kind(f"{self.where} cannot be read: {self._said(error)}")

    def _said(self, error: Exception) -> str:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return text.replace(self._url, self.where)

    def _refused(self, error: web.Refused) -> LoadError:
        if error.status == _NOT_THERE:
            return LoadError(f"there is nothing at {self.where}: the server answers {error}")
        if error.status in _NO_ACCESS:
            return LoadError(f"{self.where} may not be read: the server answers {error}")
        return LoadError(f"{self.where} cannot be read: the server answers {error}")


def _name(path: PurePosixPath) -> str:
    """As `ds-serve --model` names models: by the file, or by its folder where that says more."""
    stem = path.name if not path.suffix or len(path.suffix) > LONGEST_SUFFIX else path.stem
    if (stem in ("model", "saved_model", "inference") or stem.isdecimal()) and path.parent.name:
        return _name(path.parent)
    return model_name(stem)


def _part(path: str, about: dict[str, Any]) -> Part:
    stamp = " ".join(str(about[key]) for key in STAMPS if about.get(key))
    size = about.get("size")
    return Part(str(safe(path)), about["name"], -1 if size is None else int(size), stamp=stamp)


def _stated(headers: Message) -> str:
    """The SHA-256 that a server states: RFC 9530, or as artifact repositories do."""
    if own := headers.get("X-Checksum-Sha256", ""):
        return own.lower()
    _, found, rest = headers.get("Repr-Digest", "").partition("sha-256=:")
    try:
        return base64.b64decode(rest.partition(":")[0], validate=True).hex() if found else ""
    except binascii.Error:
        return ""


def _public(url: str) -> str:
    """The address without a password, and with a mere mark of its query, which may be a key."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    mark = hashlib.sha256(parts.query.encode()).hexdigest()[:8] if parts.query else ""
    return parts._replace(netloc=host, query=mark, fragment="").geturl()
