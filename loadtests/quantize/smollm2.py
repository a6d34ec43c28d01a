"""SmolLM2-135M-Instruct on paragraphs of Python's reference.

Needs ds-serve[quantize-llm], and the model's folder, which `loadtests.peers` makes out of the
catalogue's file: its weights had 4 bits once, and are 16-bit numbers here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from loadtests.peers.text.model import hugging_face
from loadtests.quantize import LANGUAGE, Case, recipe

CALIBRATION = 32
SHORTEST, LONGEST = 300, 900
"""Characters of a paragraph."""

MARKUP = re.compile(r"::|>>>|\*\*|--|==|[|{}]|\[\d")


def case(folder: Path, rows: int = 60) -> Case:
    """`rows` paragraphs, and others to calibrate with. Raises BenchmarkError."""
    found = sorted(set(_paragraphs()))
    random.Random(0).shuffle(found)
    chosen = found[CALIBRATION : CALIBRATION + rows]
    for name, texts in (("calibration", found[:CALIBRATION]), ("evaluation", chosen)):
        (folder / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    words = sum(len(text.split()) for text in chosen)
    return Case(
        name="SmolLM2-135M-Instruct",
        about=f"chat; {len(chosen)} paragraphs, {words:,} words",
        model=str(hugging_face()),
        calibration=str(folder / "calibration.txt"),
        evaluation=str(folder / "evaluation.txt"),
        recipe=recipe("llm-w8a8"),
        table=LANGUAGE,
    )


def _paragraphs() -> Iterator[str]:
    """Prose out of the topics that Python's `help` has."""
    for topic in topics.values():
        for paragraph in topic.split("\n\n"):
            text = " ".join(paragraph.split())
            if SHORTEST <= len(text) <= LONGEST and text[0].isupper() and not MARKUP.search(text):
                yield text
