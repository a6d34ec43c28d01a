"""OpenVINO folders of language models: read, made of Hugging Face folders, and written anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import openvino as ov

from ds_engines.errors import LoadError
from ds_engines.openvino_export import MODEL, export_folder
from ds_quantize.context import Progress
from ds_quantize.errors import SourceError
from ds_quantize.forms import FolderModel, Model

CACHE = ["runtime_options", "KV_CACHE_PRECISION"]
"""Where OpenVINO looks, in a model, for how keys and values are to be remembered."""

PARTS = 100
OURS = {"manifest.json", "report.html", "report.json", "stage.json"}


def exported(model: Model, folder: Path, progress: Progress) -> FolderModel:
    """A Hugging Face folder as OpenVINO's, in 16 bits, below `folder`. Raises SourceError."""
    if not isinstance(model, FolderModel):
        raise SourceError(f"a model of form {model.form!r} is no Hugging Face folder")
    made = folder / "model"
    ticks = progress.track(range(PARTS), "To OpenVINO", PARTS)
    done = 0

    def tell(_: str, share: float) -> None:
        nonlocal done
        while done < share * PARTS:
            next(ticks, None)
            done += 1

    try:
        export_folder(model.path, made, tell)
    except LoadError as error:
        raise SourceError(str(error)) from error
    return FolderModel(made, "openvino")


def graph(folder: Path) -> Any:
    """Its model. Raises SourceError."""
    try:
        return ov.Core().read_model(folder / MODEL)
    except RuntimeError as error:
        line = str(error).strip().rpartition("\n")[2]
        raise SourceError(f"{folder / MODEL} cannot be read: {line}") from error


def written(model: Any, source: Path, target: Path, cache: str) -> FolderModel:
    """The model with all else that stands in `source`."""
    target.mkdir()
    model.set_rt_info(cache, CACHE)
    ov.save_model(model, target / MODEL)
    for file in source.iterdir():
        if file.is_file() and file.name not in OURS and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
    return FolderModel(target, "openvino")


def size(folder: Path) -> int:
    """Bytes of the weights."""
    return (folder / MODEL).with_suffix(".bin").stat().st_size
