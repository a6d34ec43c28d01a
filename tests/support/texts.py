"""What the tests of text models ask, and of which models."""

from __future__ import annotations

from typing import Any

TEXT = "smollm2-135m-instruct"
FILES = "magika"
"""A tensor model that is served beside it."""

FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a long story about a dragon."}]

PARIS: dict[str, Any] = {"model": TEXT, "messages": FRANCE, "temperature": 0, "max_tokens": 30}
"""A chat that is over after a few tokens, and whose answer is known."""

ENDLESS: dict[str, Any] = {
    "model": TEXT,
    "prompt": "Once upon a time",
    "temperature": 0,
    "max_tokens": 7000,
    "ignore_eos": True,
}
"""A completion that takes minutes unless somebody ends it."""
