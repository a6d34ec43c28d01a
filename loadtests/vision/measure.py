"""What a detector finds on whole boards, cut, detected and joined as the example does it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np

from ds_engines.base import EngineOptions, load
from ds_engines.spec import ModelSpec
from loadtests.vision import example
from loadtests.vision.boards import Board
from loadtests.vision.matching import Boxes, Outcome, outcome

LEAST = 0.02
"""Scores below these are not looked at: they change no average precision that can be seen."""


def inspected(path: Path, boards: Iterable[Board], threads: int = 0) -> Outcome:
    """The ONNX file in the engine that the server has for it. `threads` 0: all CPUs."""
    spec = ModelSpec(name="detector", engine="onnxruntime", artifact=path)
    pairs = []
    with closing(load(spec, EngineOptions(threads=threads))) as engine:
        for made in boards:
            tiles, windows = example.cut(made.picture)
            told = engine.run({"image": tiles})
            height, width = made.picture.shape[:2]
            boxes, scores, classes = example.found(
                told["scores"], told["distances"], windows, (width, height), LEAST
            )
            true = Boxes(made.boxes, made.classes, np.ones(len(made.boxes)))
            pairs.append((Boxes(boxes, classes, scores), true))
    return outcome(pairs)


def score_for(precision: float, found: Outcome) -> float:
    """The least score at which this share of what is found is right; 1 where there is none."""
    shares = np.cumsum(found.right) / np.arange(1, len(found.right) + 1)
    enough = np.nonzero(shares >= precision)[0]
    return float(found.scores[enough[-1]]) if len(enough) else 1.0
