"""`manifest.json`, which lies beside a model that the quantization pipeline has made.

It says where the model comes from, what was done to it and measured on it, what each file's hash
is, and whether it was found good enough. It is the whole contract between the pipeline, which
writes it, and the server, which serves a version only if it passed and its files are those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from ds_engines.errors import LoadError

MANIFEST = "manifest.json"
FORMAT = 1
"""Raised when an older reader could take a newer file the wrong way."""


class Source(msgspec.Struct, frozen=True):
    """The model before anything was done to it; `sha256` is of its contents."""

    path: str
    sha256: str


class DataSet(msgspec.Struct, frozen=True):
    """Some rows of data; `digest` is a SHA-256 over their contents."""

    source: str
    digest: str
    rows: int


class DataSets(msgspec.Struct, frozen=True):
    """What was calibrated with, and what was judged by."""

    calibration: DataSet | None = None
    evaluation: DataSet | None = None


class File(msgspec.Struct, frozen=True):
    """`size` in bytes."""

    sha256: str
    size: int


class Judgement(msgspec.Struct, frozen=True):
    """The gate's: `values` are what was measured, by the names of the `limits`; `reasons` say which
    limit was not kept.
    """

    passed: bool
    limits: dict[str, Any] = {}
    values: dict[str, Any] = {}
    reasons: list[str] = []


class Manifest(msgspec.Struct, frozen=True):
    """All that is known of one version. `created` is a time in UTC, as ISO 8601 has it; `files`
    are all files of the version's folder but this one, by their path in it.
    """

    created: str
    source: Source
    recipe: dict[str, Any]
    libraries: dict[str, str]
    data: DataSets
    files: dict[str, File]
    measured: dict[str, Any]
    gate: Judgement
    format: int = FORMAT


class _Head(msgspec.Struct, frozen=True):
    format: int


def read(folder: Path) -> Manifest | None:
    """The manifest of a version's folder; None where it has none. LoadError for a broken one."""
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    try:
        version = msgspec.json.decode(text, type=_Head).format
        if version == FORMAT:
            return msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} is not a manifest of a quantized model: {error}") from None
    raise LoadError(
        f"{path} is of format {version}, and this ds-serve reads {FORMAT}: use the ds-serve that "
        "the model was made for, or make it anew"
    )


def write(folder: Path, manifest: Manifest) -> Path:
    """Write it into the folder of the version."""
    path = folder / MANIFEST
    path.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return path


def verify(folder: Path) -> None:
    """Check that the folder holds the very files that its manifest lists.

    Raises LoadError that names the file which is missing, changed or not listed, or the manifest
    where there is none.
    """
    manifest = read(folder)
    if manifest is None:
        raise LoadError(f"{folder} has no {MANIFEST}")
    for name, expected in manifest.files.items():
        _check(folder, name, expected)
    unknown = sorted(set(_files_in(folder)) - set(manifest.files) - {MANIFEST})
    if unknown:
        raise LoadError(
            f"{folder / unknown[0]} is not in {MANIFEST}: it was not made with the rest"
        )


def admit(folder: Path) -> Manifest | None:
    """Whether a server may serve a version: its manifest, None where it has none and needs none.

    Raises LoadError where its files are not those that were judged, or it did not pass the gate.
    """
    manifest = read(folder)
    if manifest is None:
        return None
    verify(folder)
    if not manifest.gate.passed:
        why = "; ".join(manifest.gate.reasons) or "no reason is given"
        raise LoadError(f"{folder / MANIFEST} says that the model did not pass its gate: {why}")
    return manifest


def listing(folder: Path) -> dict[str, File]:
    """Every file of a version's folder but the manifest, by its path in it."""
    return {name: file(folder / name) for name in sorted(_files_in(folder)) if name != MANIFEST}


def file(path: Path) -> File:
    """A file's hash and size."""
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return File(digest, path.stat().st_size)


def _files_in(folder: Path) -> Iterator[str]:
    """Hidden files are left out: network file systems and desktops leave theirs everywhere."""
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_file() and not _hidden(inside.parts):
            yield inside.as_posix()


def _hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def _check(folder: Path, name: str, expected: File) -> None:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise LoadError(f"{folder / MANIFEST} lists {name!r}, which is not in its folder")
    path = folder / inside
    try:
        found = file(path)
    except FileNotFoundError:
        raise LoadError(f"{path} is missing; {MANIFEST} lists it") from None
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    if found.size != expected.size:
        raise LoadError(f"{path} has {found.size} bytes; {MANIFEST} says {expected.size}")
    if found.sha256 != expected.sha256:
        raise LoadError(
            f"{path} has changed since it was judged: its SHA-256 is {found.sha256}, and "
            f"{MANIFEST} says {expected.sha256}"
        )
