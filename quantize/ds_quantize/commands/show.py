"""`ds-quantize show` and `verify`: manifests, and whether the files still fit them."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from rich.console import Console

from ds_engines import manifest
from ds_engines.errors import LoadError
from ds_engines.manifest import DataSet, Manifest
from ds_quantize import text
from ds_quantize.errors import SourceError
from ds_quantize.evaluate.results import Evaluation


def show(arguments: argparse.Namespace) -> int:
    """What the manifest of a version, the newest of a model, says."""
    console = text.console()
    folder = _versions(arguments.path)[-1]
    found = manifest.read(folder)
    if found is None:
        raise SourceError(f"{folder} has no {manifest.MANIFEST}: ds-quantize has not made it")
    for line in _about(folder, found):
        console.print(line, markup=False)
    _measured(found, console)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """0 where every version is whole and passed its gate."""
    console = text.console()
    failed = False
    for path in arguments.paths:
        for folder in _versions(path):
            said = _verified(folder)
            failed = failed or bool(said)
            console.print(said or f"{folder}: whole, and passed its gate", markup=False)
    return 1 if failed else 0


def _verified(folder: Path) -> str:
    """What is wrong with a version; nothing where all is well."""
    try:
        manifest.verify(folder)
        manifest.admit(folder)
    except LoadError as error:
        return str(error)
    return ""


def _versions(path: Path) -> list[Path]:
    """The versions of a model's folder in their order, or the one that is named."""
    if not path.is_dir():
        raise SourceError(f"there is no folder {path}; give models/NAME or models/NAME/N")
    if (path / manifest.MANIFEST).exists() or path.name.isdecimal():
        return [path]
    found = [each for each in path.iterdir() if each.is_dir() and each.name.isdecimal()]
    if not found:
        raise SourceError(f"{path} has no versions, such as {path / '1'}")
    return sorted(found, key=lambda each: int(each.name))


def _about(folder: Path, found: Manifest) -> list[str]:
    steps = ", ".join(step["method"] for step in found.recipe.get("steps", []))
    gate = found.gate
    return [
        f"{folder}, made {found.created}",
        f"source: {found.source.path} (SHA-256 {found.source.sha256[:12]}...)",
        f"recipe: {found.recipe.get('name')} ({steps})",
        f"calibration: {_data(found.data.calibration)}",
        f"evaluation: {_data(found.data.evaluation)}",
        f"libraries: {', '.join(f'{name} {number}' for name, number in found.libraries.items())}",
        *(f"file: {name} ({text.size(file.size)})" for name, file in found.files.items()),
        f"gate: {'passed' if gate.passed else 'not passed'}; limits: "
        f"{text.settings(gate.limits) or 'none'}",
        *(f"not passed: {reason}" for reason in gate.reasons),
    ]


def _data(given: DataSet | None) -> str:
    return "none" if given is None else f"{given.rows:,} rows of {given.source}"


def _measured(found: Manifest, console: Console) -> None:
    try:
        evaluation = msgspec.convert(found.measured.get("evaluation"), Evaluation)
    except msgspec.ValidationError:
        return
    console.print(text.comparison(evaluation))
    for note in evaluation.remarks:
        console.print(f"note: {note}", markup=False)
