"""A mix of chats: mostly short questions, some with a long text to read first."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "smollm2-135m-instruct"
LONG_SHARE = 0.25
SHORT_TOKENS, LONG_TOKENS = 32, 64
PASSAGE_WORDS = 350

SUBJECTS = (
    "a lighthouse", "the moon", "bread", "a river", "chess", "a violin", "rain", "a bridge",
    "the desert", "tea", "a bicycle", "glass", "a volcano", "wool", "a library", "salt",
)  # fmt: skip
QUESTIONS = (
    "Write one sentence about {}.",
    "What is the first thing to know about {}?",
    "Name three words that go with {}.",
    "Explain {} to a child in two sentences.",
)
SENTENCES = (
    "The morning ferry carried {} across the bay.",
    "Nobody in the village had seen {} before that winter.",
    "They spoke of {} until the fire went out.",
    "In the ledger there was a page on {} and nothing else.",
)


def model(folder: Path, **options: object) -> str:
    """The catalogue's entry. Raises ValueError: there are no options."""
    if options:
        raise ValueError(f"there is no option {next(iter(options))!r}; chat has none")
    return NAME


def prompts(seed: int) -> Iterator[dict[str, Any]]:
    """Three of four are short. Each differs, so that a cache of prefixes has little to do."""
    chance = random.Random(seed)
    while True:
        long = chance.random() < LONG_SHARE
        text = _passage(chance) if long else _question(chance)
        yield {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": LONG_TOKENS if long else SHORT_TOKENS,
        }


def check(prompt: dict[str, Any], text: str, tokens: int) -> str | None:
    """Some text, in no more tokens than were allowed."""
    if not text.strip():
        return "there is no text in it"
    most = prompt["max_tokens"]
    return None if tokens <= most else f"{tokens} tokens where {most} were allowed"


def _question(chance: random.Random) -> str:
    return chance.choice(QUESTIONS).format(chance.choice(SUBJECTS))


def _passage(chance: random.Random) -> str:
    sentences: list[str] = []
    while sum(len(sentence.split()) for sentence in sentences) < PASSAGE_WORDS:
        sentences.append(chance.choice(SENTENCES).format(chance.choice(SUBJECTS)))
    return " ".join(sentences) + "\n\nSay in a few words what this text is about."
