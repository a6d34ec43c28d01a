"""The code and the settings of docs/examples/inspection, so that what is measured is what is
served.
"""

from __future__ import annotations

import io
import shutil
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ds_engines import config_pbtxt

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs/examples/inspection"
MODELS = FOLDER / "models"
DETECTOR = "inspection_detect"

Array = npt.NDArray[Any]


@cache
def _module(path: str) -> ModuleType:
    spec = spec_from_file_location(Path(path).stem, MODELS / path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def settings(model: str) -> dict[str, float]:
    """The numbers among the `parameters` of its config.pbtxt."""
    config = config_pbtxt.read(MODELS / model / "config.pbtxt")
    return {name: float(value.string_value) for name, value in config.parameters.items()}


def tile_size() -> int:
    return int(settings("inspection_tiles")["tile"])


def copied(folder: Path, detector: Path) -> Path:
    """The repository without its own detector's versions, and this ONNX file as the only one."""
    shutil.copytree(MODELS, folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    model = folder / DETECTOR
    for version in model.iterdir():
        if version.is_dir():
            shutil.rmtree(version)
    (model / "1").mkdir()
    shutil.copy(detector, model / "1/model.onnx")
    return folder


def jpeg(picture: Array, quality: int = 90) -> bytes:
    """The bytes of the file, as a camera would send it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def cut(picture: Array) -> tuple[Array, Array]:
    """uint8 [height, width, 3] to tiles uint8 [n, 3, tile, tile] and their windows int64 [n, 4]."""
    told, cutting = settings("inspection_tiles"), _module("inspection_tiles/1/cutting.py")
    height, width = picture.shape[:2]
    windows = cutting.windows(width, height, int(told["tile"]), int(told["overlap"]))
    return cutting.cut(picture, windows), windows


def decoded(data: bytes) -> Array:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def centres(tile: int) -> Array:
    """float32 [positions, 2]: x and y of what the detector's rows are about."""
    points: Array = _module("inspection_boxes/1/suppression.py").centres(tile)
    return points


def found(
    scores: Array, distances: Array, windows: Array, size: tuple[int, int], score: float | None
) -> tuple[Array, Array, Array]:
    """Boxes, scores and classes on the whole picture of `size` (width, height); with another least
    score than the example's where one is given.
    """
    told = settings("inspection_boxes")
    boxes: tuple[Array, Array, Array] = _module("inspection_boxes/1/suppression.py").found(
        scores,
        distances,
        windows,
        np.array(size),
        score=told["score"] if score is None else score,
        overlap=told["overlap"],
        margin=int(told["margin"]),
        most=int(told["most"]),
    )
    return boxes
