"""What `MODEL` means: an ONNX file, a PyTorch module, a text model's folder; told by content."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_engines.openvino_export import is_exported
from ds_quantize import libraries
from ds_quantize.errors import SourceError
from ds_quantize.forms import FolderModel, Form, Model, OnnxModel
from ds_quantize.python_file import is_reference

if TYPE_CHECKING:
    from ds_quantize.data import Data

WANTED = "give an ONNX file, FILE.py:FACTORY, a .pt2 file, or a Hugging Face folder"


@dataclass(frozen=True)
class Source:
    """A model as the user has it. `digest` is a SHA-256 over its contents."""

    said: str
    model: Model
    digest: str


def read(said: str, calibration: Data | None = None, seed: int = 0) -> Source:
    """The model that `said` names.

    `calibration` gives example inputs for a PyTorch module that brings none; `seed` is set before
    a factory is called. Raises SourceError, MissingExtra.
    """
    if is_reference(said):
        return _torch("from_factory", said, calibration, seed)
    path = Path(said).expanduser()
    if not path.exists():
        raise SourceError(f"there is no {path}; {WANTED}")
    if path.is_dir():
        return _folder(said, path)
    if _is_exported_program(path):
        return _torch("from_program", said, calibration, seed)
    if is_onnx(path):
        return Source(said, OnnxModel(path), digest_of(onnx_files(path)))
    raise SourceError(f"{path} is not a model that can be read; {WANTED}")


def is_onnx(path: Path) -> bool:
    """Whether it is an ONNX file, whatever its name is."""
    if not path.is_file():
        return False
    try:
        return bool(_onnx("load_graph")(path).graph.node)
    except SourceError:
        return False


def onnx_files(path: Path) -> list[Path]:
    """An ONNX file, and those beside it that hold its tensors. SourceError where one is missing."""
    found: list[Path] = _onnx("files")(path)
    return found


def digest_of(files: Iterable[Path]) -> str:
    """A SHA-256 over the contents of files, in the order given."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def digest_of_path(path: Path) -> str:
    """A SHA-256 over a file, with those that hold its tensors, or over all files of a folder."""
    if path.is_dir():
        return _digest_of_folder(path)
    return digest_of(onnx_files(path) if path.suffix == ".onnx" and is_onnx(path) else [path])


def _digest_of_folder(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = "\n".join(str(file.relative_to(path)) for file in files)
    return hashlib.sha256(f"{names}\n{digest_of(files)}".encode()).hexdigest()


def _onnx(function: str) -> Any:
    try:
        return getattr(import_module("ds_quantize.onnx_files"), function)
    except ImportError as error:
        raise libraries.missing(error, "quantize", "reading an ONNX file") from None


def _torch(function: str, said: str, calibration: Data | None, seed: int) -> Source:
    try:
        module = import_module("ds_quantize.torch_source")
    except ImportError as error:
        raise libraries.missing(error, "quantize-torch", f"reading {said}") from None
    model, digest = getattr(module, function)(said, calibration, seed)
    return Source(said, model, digest)


def _folder(said: str, path: Path) -> Source:
    place = path if (path / "config.json").is_file() else version_in(path) or path
    if (place / "config.json").is_file():
        form: Form = "openvino" if is_exported(place) else "huggingface"
        return Source(said, FolderModel(place, form), _digest_of_folder(place))
    found = model_in(path)
    if found is None:
        raise SourceError(f"the folder {path} holds no config.json and no model.onnx; {WANTED}")
    return Source(said, OnnxModel(found), digest_of(onnx_files(found)))


def model_in(folder: Path) -> Path | None:
    """The ONNX file of a model's folder: of the version with the highest number, if it has any."""
    place = version_in(folder) or folder
    usual = place / "model.onnx"
    files = [usual] if usual.is_file() else sorted(place.glob("*.onnx"))
    return files[0] if len(files) == 1 else None


def version_in(folder: Path) -> Path | None:
    """The version with the highest number of a model's folder; None where it has none."""
    versions = [path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal()]
    return max(versions, key=lambda path: int(path.name), default=None)


def _is_exported_program(path: Path) -> bool:
    """Whether it is an archive that `torch.export.save` wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if names & {"archive_format", "serialized_exported_program.json"}:
        return True
    if "data.pkl" in names:
        raise SourceError(
            f"{path} is a file of torch.save or TorchScript, which does not say how to run the "
            "module; save it with torch.export.save, or give FILE.py:FACTORY"
        )
    raise SourceError(f"{path} is a zip archive of something else; {WANTED}")
