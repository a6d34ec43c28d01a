"""What a language model foresees of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ds_engines.base import Array

LONGEST = 512
"""Tokens of one passage; a longer text is cut into several."""

WORST = 50.0
"""The loss of a token whose scores are not finite; e to this is still a number."""


@dataclass(frozen=True)
class Passage:
    """Tokens of a text. `words[i]` is the number of the word that `ids[i]` is a part of, -1 for
    none; a word that the passage does not begin with.
    """

    ids: torch.Tensor
    words: Array


@dataclass(frozen=True)
class Heard:
    """`loss`: the sum of the tokens' negative log-likelihoods, in nats; `best`: the likeliest
    token at each place; `right` of `words`: those whose tokens were all the likeliest.
    """

    loss: float
    best: Array
    right: int
    words: int
    finite: bool


def passages(text: str, tokenizer: Any, most: int) -> list[Passage]:
    """The text in pieces of up to `most` tokens (LONGEST, where that is less), none under two."""
    read = tokenizer(text, return_offsets_mapping=True)
    ids, words = read["input_ids"], _words(text, read["offset_mapping"])
    size = min(most, LONGEST)
    pieces = [slice(start, start + size) for start in range(0, len(ids), size)]
    return [
        Passage(torch.tensor(ids[piece]), words[piece]) for piece in pieces if len(ids[piece]) > 1
    ]


def _words(text: str, offsets: list[tuple[int, int]]) -> Array:
    """A word ends before white space. A token may begin with the space before its word."""
    starts = np.array(
        [i for i, c in enumerate(text) if not c.isspace() and (i == 0 or text[i - 1].isspace())]
    )
    found = np.full(len(offsets), -1)
    for token, (start, end) in enumerate(offsets):
        if text[start:end].strip():
            found[token] = np.searchsorted(starts, end - 1, side="right") - 1
    return found


def heard(scores: torch.Tensor, passage: Passage) -> Heard:
    """What the scores, float32 [tokens, vocabulary], say of the passage; each token is foreseen
    from those before it.
    """
    ids, scores = passage.ids, scores[:-1]
    losses = cross_entropy(scores, ids[1:], reduction="none")
    finite = bool(torch.isfinite(scores).all())
    if not finite:
        losses = torch.nan_to_num(losses, nan=WORST, posinf=WORST).clamp(max=WORST)
    best = scores.argmax(-1)
    right, words = _foreseen((best == ids[1:]).numpy(), passage.words)
    return Heard(float(losses.double().sum()), best.numpy(), right, words, finite)


def _foreseen(hits: Array, words: Array) -> tuple[int, int]:
    """Words of which all tokens were foreseen, and all words but one that the passage begins
    within.
    """
    of = words[1:]
    judged = np.unique(of[(of >= 0) & (of != words[0])])
    missed = np.unique(of[~hits])
    return len(np.setdiff1d(judged, missed)), len(judged)
