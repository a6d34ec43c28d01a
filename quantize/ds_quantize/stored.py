"""Models in the folders of stages: put there, and taken out again by a later run."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from ds_quantize.errors import MethodError
from ds_quantize.forms import FolderModel, Model, OnnxModel, PlanModel, TorchModel
from ds_quantize.sources import onnx_files

Record = dict[str, Any]

TORCH = "ds_quantize.torch_files"


def put(model: Model, folder: Path) -> Record:
    """Make sure that the model is in `folder`, and say where, as JSON."""
    if isinstance(model, TorchModel):
        import_module(TORCH).save(model, folder)
        return {"form": model.form}
    path = model.path if _within(model.path, folder) else copy(model, folder)
    record: Record = {"form": model.form, "path": path.relative_to(folder).as_posix()}
    return record | {"library": model.library} if isinstance(model, PlanModel) else record


def get(record: Record, folder: Path) -> Model:
    """The model that `put` has put there."""
    form = record["form"]
    if form == "torch":
        loaded: TorchModel = import_module(TORCH).load(folder)
        return loaded
    path = folder / record["path"]
    if form == "onnx":
        return OnnxModel(path)
    if form == "plan":
        return PlanModel(path, record["library"])
    return FolderModel(path, form)


def copy(model: Model, folder: Path, name: str = "") -> Path:
    """Copy the model's files into `folder`, the main one under `name`; returns that one."""
    if isinstance(model, TorchModel):
        raise MethodError("a PyTorch module has no files; it must be exported first")
    if isinstance(model, FolderModel):
        shutil.copytree(model.path, folder, dirs_exist_ok=True)
        return folder
    main = folder / (name or model.path.name)
    others = onnx_files(model.path)[1:] if isinstance(model, OnnxModel) else []
    for file in others:
        target = folder / file.relative_to(model.path.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    shutil.copyfile(model.path, main)
    return main


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
