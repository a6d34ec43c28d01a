"""`ds-models list`: tables of what is there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ds_serve.catalogue import prune, records
from ds_serve.catalogue.entries import entries
from ds_serve.catalogue.fetch import fetched
from ds_serve.catalogue.progress import MB
from ds_serve.catalogue.versions import Model, gate, models_in
from ds_serve.models import is_name


def size(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / MB:,.1f} MB" if count < 1000 * MB else f"{count / MB / 1000:,.1f} GB"


def catalogue() -> None:
    """Every model that a name is enough for."""
    for entry in entries():
        print(f"{entry.name}\n    {entry.description}")
        path = fetched(entry)
        where = f"fetched: {path}" if path else f"{entry.size / MB:,.1f} MB to download"
        print(f"    {entry.task}, {entry.licence}, {where}")


def cache(root: Path, *, as_json: bool) -> None:
    """The one that was used last first."""
    items = prune.items(root)[::-1]
    rows = [
        {
            "name": item.name,
            "size": item.size,
            "state": "whole" if item.finished else "unfinished",
            "source": item.source,
            "revision": item.revision,
            "used": time.strftime("%Y-%m-%d %H:%M", time.localtime(item.used)),
            "folder": str(item.folder),
        }
        for item in items
    ]
    _show(rows, ("name", "size", "state", "used", "source", "revision"), as_json=as_json)
    if not as_json:
        print(_summary(root, sum(item.size for item in items)))


def _summary(root: Path, total: int) -> str:
    limit = prune.limit()
    allowed = f" of {size(limit)} allowed" if limit else ""
    return f"{size(total)}{allowed} in {root}; `ds-models list --catalogue` has what a name gets"


def repository(path: Path, *, as_json: bool) -> None:
    """Every version of every model, or of the model whose folder it is."""
    own = Model(path) if is_name(path.absolute().name) else None
    models = [own] if own is not None and own.versions() else models_in(path)
    rows = [_row(model, version) for model in models for version in model.versions()]
    _show(rows, ("name", "version", "state", "gate", "size", "pulled", "source"), as_json=as_json)


def _row(model: Model, version: int) -> dict[str, Any]:
    folder = model.folder / str(version)
    record = records.read(folder)
    state = "served" if version in model.served() else ""
    return {
        "name": model.name,
        "version": version,
        "state": "promoted" if state and version in model.promoted() else state,
        "gate": gate(folder),
        "size": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "pulled": record.pulled if record else "",
        "source": record.source if record else "",
        "revision": record.revision if record else "",
    }


def _show(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(rows).decode())
        return
    table = [[column.upper() for column in columns]]
    table += [[_cell(column, row[column]) for column in columns] for row in rows]
    widths = [max(len(line[at]) for line in table) for at in range(len(columns))]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def _cell(column: str, value: Any) -> str:
    if column == "size":
        return size(value)
    return str(value)[:19] if column == "revision" else str(value) or "-"
