"""PP-OCR's recognition on rendered lines of text, with noise, in several sizes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from loadtests.quantize import Case, recipe
from loadtests.scenarios.ocr import HEIGHT, WIDTH, WORDS, _model, _names

CALIBRATION = 64
MORE = (
    "street", "Friday", "account", "balance", "signed", "March", "volume", "engine", "window",
    "quick", "brown", "lazy", "jumps", "paper", "zero", "exit", "hotel", "bridge", "yellow",
)  # fmt: skip


def case(folder: Path, rows: int = 400) -> Case:
    """`rows` lines with their texts, and others to calibrate with."""
    chance = random.Random(0)
    texts = [_line(chance) for _ in range(rows + CALIBRATION)]
    images = np.stack([rendered(text, chance) for text in texts])
    name = _names()[0]
    np.savez(folder / "calibration.npz", **{name: images[:CALIBRATION]})
    labels = np.array(texts[CALIBRATION:])
    np.savez(folder / "evaluation.npz", **{name: images[CALIBRATION:]}, labels=labels)
    return Case(
        name="PP-OCRv6 recognition",
        about=f"text in pictures; {rows:,} rendered lines, some blurred, all with noise",
        model=str(_model()),
        calibration=str(folder / "calibration.npz"),
        evaluation=str(folder / "evaluation.npz"),
        recipe=recipe("ocr"),
    )


def _line(chance: random.Random) -> str:
    """A word and a number, or two words; no blanks, which the model leaves out now and then."""
    word = chance.choice(WORDS + MORE)
    other = chance.choice((chance.choice(MORE), f"{chance.randint(10, 99999)}"))
    return f"{word.capitalize() if chance.random() < 0.4 else word}-{other}"


def rendered(text: str, chance: random.Random) -> npt.NDArray[np.float32]:
    """Dark on light, scaled to -1 to 1: float32 [3, 48, 320]."""
    paper, ink = chance.randint(190, 255), chance.randint(0, 90)
    image = Image.new("RGB", (WIDTH, HEIGHT), (paper,) * 3)
    font = ImageFont.load_default(chance.randint(14, 29))
    place = (chance.randint(2, 12), chance.randint(2, 12))
    ImageDraw.Draw(image).text(place, text, fill=(ink,) * 3, font=font)
    if chance.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(chance.uniform(0.4, 1.5)))
    noise = np.random.default_rng(chance.randrange(2**32)).normal(0, 16, (HEIGHT, WIDTH, 3))
    pixels = np.clip(np.asarray(image, np.float32) + noise, 0, 255) / 127.5 - 1
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
