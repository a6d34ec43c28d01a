"""A Hugging Face folder as the folder that OpenVINO GenAI loads.

The model becomes a graph that keeps keys and values of past tokens as its state, in the 16 bits
that it was saved in; tokenizer and detokenizer become graphs too. optimum-intel does the same, but
holds transformers at an old release.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ds_engines.errors import ConfigError, LoadError

Progress = Callable[[str, float], None]
"""Told the step that begins, and the share that is done, from 0 to 1."""

MODEL = "openvino_model.xml"
TOKENIZER = "openvino_tokenizer.xml"
DETOKENIZER = "openvino_detokenizer.xml"
EXTRA = "convert"

_TRACING = "ds_engines.openvino_tracing"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
_OURS = {"manifest.json", "report.html", "report.json", "stage.json"}


def is_exported(folder: Path) -> bool:
    """Whether it holds a language model as `export_folder` writes it."""
    return (folder / MODEL).is_file() and (folder / TOKENIZER).is_file()


def export_folder(folder: Path, target: Path, progress: Progress) -> None:
    """Convert the language model in `folder` (config.json, weights, tokenizer) into `target`.

    `target` is made where it is missing; files of the same names are overwritten, and what was
    written before an error is left. No code out of the folder is run. The graph's answers are
    compared with PyTorch's before it is written.

    Raises LoadError for a folder that cannot be converted, and ConfigError where a library is
    missing.
    """
    progress("reading", 0.0)
    _require_plain(folder, _config(folder))
    tracing = _imported()
    target.mkdir(parents=True, exist_ok=True)
    tracing.convert(folder, target / MODEL, progress)
    progress("tokenizer", 0.9)
    tracing.convert_tokenizer(folder, target / TOKENIZER, target / DETOKENIZER)
    _bring(folder, target)
    progress("done", 1.0)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise LoadError(f"{path} is not an object")
    return found


def _require_plain(folder: Path, config: dict[str, Any]) -> None:
    if not config.get("quantization_config"):
        return
    quantized = config["quantization_config"]
    how = quantized.get("quant_method", "some way") if isinstance(quantized, dict) else "some way"
    raise LoadError(
        f"{folder} is quantized already ({how}): convert the model as it was before, and let "
        "ds-quantize quantize it for OpenVINO"
    )


def _imported() -> Any:
    try:
        return import_module(_TRACING)
    except ImportError as error:
        raise ConfigError(
            f"converting a Hugging Face folder needs {error.name or str(error)!r}: "
            f'pip install "ds-serve[{EXTRA}]"'
        ) from error


def _bring(folder: Path, target: Path) -> None:
    """What stands beside the weights, as it is: configuration, tokenizer, chat template."""
    for file in folder.iterdir():
        kept = file.name not in _OURS and not file.name.endswith(".index.json")
        if file.is_file() and kept and file.suffix not in _WEIGHTS and file.name[0] != ".":
            shutil.copyfile(file, target / file.name)
