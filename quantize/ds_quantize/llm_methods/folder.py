"""Language models out of Hugging Face folders, and into new ones."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ds_quantize.errors import MethodError, SourceError
from ds_quantize.forms import FolderModel, Model

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx")
OURS = {"config.json", "manifest.json", "report.html", "report.json"}
QUANTIZED = "quantization_config"


def path_of(model: Model) -> Path:
    """The folder. Raises SourceError for a model that is none."""
    if not isinstance(model, FolderModel):
        raise SourceError(f"a model of form {model.form!r} is no Hugging Face folder")
    return model.path


def config(folder: Path) -> dict[str, Any]:
    """Its config.json. Raises SourceError."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise SourceError(f"{path} is not an object")
    return found


def loaded(folder: Path) -> Any:
    """The model in the datatype that it was saved in, ready to run. Raises SourceError."""
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        line = str(error).strip().partition("\n")[0]
        raise SourceError(f"{folder} cannot be loaded as a language model: {line}") from error
    return model.eval()


def require_original(folder: Path) -> None:
    """Raise MethodError where its weights are quantized already."""
    found = config(folder).get(QUANTIZED)
    if found:
        how = found.get("quant_method", "some way") if isinstance(found, dict) else "some way"
        raise MethodError(
            f"{folder} is quantized already ({how}): give the model as it was before, and put all "
            "into one step"
        )


def bring(source: Path, target: Path) -> None:
    """Copy tokenizer, chat template and whatever else stands beside the weights, as they are.

    A tokenizer that is written anew says what library it was, which older ones may not know.
    """
    for file in source.iterdir():
        kept = file.name not in OURS and not file.name.endswith(".index.json")
        if file.is_file() and kept and file.suffix not in WEIGHTS and not file.name.startswith("."):
            shutil.copyfile(file, target / file.name)


@contextlib.contextmanager
def settings(seed: int, threads: int) -> Iterator[None]:
    """PyTorch with this seed and so many threads, 0 for its own choice; both are put back."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def size(path: Path) -> int:
    """Bytes of its weights, which are what differs."""
    return sum(file.stat().st_size for file in path.iterdir() if file.suffix in WEIGHTS)


def context_length(path: Path) -> int:
    """The tokens that the model looks back on at most."""
    return int(config(path).get("max_position_embeddings") or 1 << 20)
