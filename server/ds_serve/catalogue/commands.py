"""What each command of `ds-models` does."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ds_engines.errors import ConfigError, LoadError, ServeError
from ds_serve.catalogue import listing, prune, pulled, records
from ds_serve.catalogue.cache import Place, default_root
from ds_serve.catalogue.control import follow
from ds_serve.catalogue.entries import get, names
from ds_serve.catalogue.fetch import fetch, verify_entry
from ds_serve.catalogue.packaged import Packaged
from ds_serve.catalogue.progress import Progress, progress_on
from ds_serve.catalogue.sources import Patterns, Source, parse
from ds_serve.catalogue.versions import Model


def pull(arguments: Namespace) -> int:
    """Prints where each model is."""
    if arguments.to is None and (arguments.promote or arguments.version or arguments.server):
        raise ConfigError("--version, --promote and --server are for models of a repository: --to")
    if arguments.to is not None and len(arguments.source) > 1:
        raise ConfigError("--to is for one source; give one at a time")
    for text in arguments.source:
        with progress_on(sys.stderr) as progress:
            get = _cached if arguments.to is None else _versioned
            path = get(text, arguments, progress)
        print(path)  # with a bar on the terminal it would be a part of that
    return 0


def _cached(text: str, arguments: Namespace, progress: Progress) -> Path:
    source = parse(text)
    if isinstance(source, Packaged):
        return fetch(source.entry, progress=progress)
    folder = pulled.pull(
        source,
        progress=progress,
        wanted=_wanted(arguments),
        sha256=getattr(arguments, "sha256", ""),
        limit=prune.limit(),
    )
    return _only_file(folder) or folder


def _wanted(arguments: Namespace) -> Patterns:
    return Patterns(tuple(arguments.include), tuple(arguments.exclude))


def _only_file(folder: Path) -> Path | None:
    """The file of a model that is one."""
    record = records.read(folder)
    if record is None or len(record.files) != 1:
        return None
    return folder / next(iter(record.files))


def _versioned(text: str, arguments: Namespace, progress: Progress) -> Path:
    model = Model(Path(arguments.to))
    source = _near(parse(text), progress)
    found = _wanted(arguments).of(source.list(), source.where)
    found = pulled.stated(found, arguments.sha256)
    folder = model.add(source, found, arguments.version, progress)
    if arguments.promote:
        progress.note(_promote(model, int(folder.name), arguments.server, progress))
    return folder


def _near(source: Source, progress: Progress) -> Source:
    """A source of the catalogue shows its own download."""
    if isinstance(source, Packaged):
        source.progress = progress
    return source


def list_(arguments: Namespace) -> int:
    if arguments.catalogue:
        listing.catalogue()
    elif arguments.repository:
        listing.repository(Path(arguments.repository), as_json=arguments.json)
    else:
        listing.cache(default_root(), as_json=arguments.json)
    return 0


def serve(arguments: Namespace) -> int:
    """Becomes `ds-serve`, which keeps hold of what it serves."""
    words = []
    for text in arguments.source:
        name, equals, rest = text.partition("=")
        named = bool(equals) and "/" not in name
        value = rest if named else text
        with progress_on(sys.stderr) as progress:
            path = _cached(value, arguments, progress)
        own = name if named else parse(value).name
        words += ["--model", f"{own}={value if value in names() else path}"]
    command = [sys.executable, "-m", "ds_serve.cli", *words, *arguments.flags]
    os.execv(sys.executable, command)  # noqa: S606 - ourselves


def verify(arguments: Namespace) -> int:
    """All that is asked for is looked at, whatever is found."""
    return 1 if sum(not _sound(what, check) for what, check in _checks(arguments)) else 0


Check = tuple[str, Callable[[], None]]


def _checks(arguments: Namespace) -> list[Check]:
    if arguments.model and _in_repository(arguments.model):
        model = Model(Path(arguments.model))
        model.require()
        versions = [arguments.version] if arguments.version else model.versions()
        return [(f"{model.where} version {v}", partial(model.check, v)) for v in versions]
    # What was made here has no source to be compared with; a server looks at it when it starts.
    items = [item for item in prune.items(default_root()) if item.finished and not item.made]
    if arguments.model:
        items = _called(arguments.model, items)
    return [(f"{item.name} in {item.folder}", partial(_check, item)) for item in items]


def _check(item: prune.Item) -> None:
    if item.name in names() and item.folder == Place(default_root(), get(item.name)).folder:
        verify_entry(item.name)
        return
    record = records.read(item.folder)
    if record is None:
        raise LoadError(f"{item.folder} has no record of what was pulled")
    records.verify(item.folder, record)


def _sound(what: str, check: Callable[[], None]) -> bool:
    try:
        with progress_on(sys.stderr) as progress:
            progress.note(f"Reading {what}")
            check()
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    print(f"{what}: as it was pulled")
    return True


def _in_repository(text: str) -> bool:
    """Whether a folder is meant, and nothing of the cache."""
    return Path(text).is_dir()


def _called(text: str, items: list[prune.Item]) -> list[prune.Item]:
    found = [item for item in items if text in (item.name, item.source, str(item.folder))]
    if not found:
        raise ConfigError(
            f"the cache has no model {text!r}, and there is no folder of that name; there are: "
            f"{', '.join(sorted({item.name for item in items})) or 'none'}"
        )
    return found


def promote(arguments: Namespace) -> int:
    with progress_on(sys.stderr) as progress:
        model = Model(Path(arguments.model))
        said = _promote(model, arguments.version, arguments.server, progress)
    print(said)
    return 0


def _promote(model: Model, version: int, server: str | None, progress: Progress) -> str:
    """What to say of it."""
    model.require()
    with model.changing(progress), model.tentative():
        progress.note(f"Reading version {version} of {model.where}")
        before = model.promote(version)
        _tell(server, model, [version], progress)
    was = ", ".join(map(str, before)) or "none"
    return f"version {version} of {model.where} is promoted; before: {was}"


def _tell(server: str | None, model: Model, versions: list[int], progress: Progress) -> None:
    if server:
        progress.note(f"Waiting for {server} to serve it")
        follow(server, model.name, versions)


def roll_back(arguments: Namespace) -> int:
    with progress_on(sys.stderr) as progress:
        model = Model(Path(arguments.model))
        model.require()
        with model.changing(progress), model.tentative():
            again, before = model.roll_back()
            _tell(arguments.server, model, again, progress)
    now, was = (", ".join(map(str, each)) for each in (again, before))
    print(f"version {now} of {model.where} is served again; before: {was}")
    return 0


def remove(arguments: Namespace) -> int:
    if _in_repository(arguments.model):
        return _remove_version(arguments)
    root = default_root()
    for item in _called(arguments.model, prune.items(root)):
        if arguments.force:
            prune.discard(item.folder, root / ".trash")
        elif not prune.remove(root, item):
            raise ConfigError(f"{item.folder} is in use by another process; or give --force")
        print(f"removed {item.folder}")
    return 0


def _remove_version(arguments: Namespace) -> int:
    model = Model(Path(arguments.model))
    if arguments.version is None:
        there = ", ".join(map(str, model.versions())) or "none"
        raise ConfigError(f"say which version of {model.where} to remove; there are: {there}")
    with progress_on(sys.stderr) as progress, model.changing(progress):
        model.remove(arguments.version, force=arguments.force)
    print(f"removed version {arguments.version} of {model.where}")
    return 0


def prune_(arguments: Namespace) -> int:
    """Superseded states go at once, then what is above the limit."""
    root = default_root()
    given = arguments.limit
    limit = prune.limit() if given is None else prune.parse_size(given, "--limit")
    with progress_on(sys.stderr) as progress:
        gone = [item for item in prune.superseded(root) if prune.remove(root, item)]
        if limit or given is not None:
            gone += prune.shrink(root, limit, progress)
    freed = sum(item.size for item in gone)
    print(f"removed {len(gone)} of the cache, {listing.size(freed)}")
    return 0
