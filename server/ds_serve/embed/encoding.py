"""One encoder as the routes see it: texts in, rows of numbers out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ds_engines.base import Array
from ds_engines.encoder_folder import EncoderInfo
from ds_engines.encoder_tokens import EncoderTokenizer, Text, Tokens
from ds_serve.embed.joining import Joiner
from ds_serve.text.errors import BadField

_QUICK = 4000
"""Characters that are tokenized sooner than another thread would have begun."""


class Cut(NamedTuple):
    """To how many tokens inputs are cut, and at which side; 0 refuses longer ones."""

    tokens: int = 0
    side: str = "right"


WHOLE = Cut()


class Encoder:
    """A loaded model; its answers have `width` numbers. All methods belong to the loop's thread."""

    def __init__(self, info: EncoderInfo, tokenizer: EncoderTokenizer, joiner: Joiner) -> None:
        self.info = info
        self.tokenizer = tokenizer
        self._joiner = joiner
        self.width = joiner.width
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def tokens(
        self, texts: Sequence[Text], field: str, cut: Cut = WHOLE, special: bool = True
    ) -> list[Tokens]:
        """Rows for `run`. Raises BadField, about `field`, for one that is too long, or empty."""

        def encode() -> list[Tokens]:
            return self.tokenizer.encode(texts, special, *cut)

        if sum(_size(text) for text in texts) <= _QUICK:
            rows = encode()
        else:
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, encode)
        self._require_fit(rows, field, cut)
        return rows

    def ids(self, lists: Sequence[list[int]], field: str, cut: Cut = WHOLE) -> list[Tokens]:
        """The same for token ids, which are taken as they are."""
        rows = [Tokens(_cut(ids, cut), [0] * len(_cut(ids, cut))) for ids in lists]
        self._require_fit(rows, field, cut)
        for at, row in enumerate(rows):
            if not 0 <= min(row.ids) <= max(row.ids) < self.tokenizer.size:
                wrong = min(row.ids) if min(row.ids) < 0 else max(row.ids)
                raise BadField(
                    field,
                    f"{field}[{at}] has token id {wrong}; ids are 0 to {self.tokenizer.size - 1}",
                )
        return rows

    async def run(self, rows: Sequence[Tokens]) -> Array:
        """FP32 [rows, width]: vectors of any length, or logits."""
        return await self._joiner.run(rows)

    def probabilities(self, logits: Array) -> Array:
        """What the model's activation makes of logits, FP32 of the same shape."""
        if self.info.activation == "identity":
            return logits
        if self.info.activation == "sigmoid":
            return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), dtype=np.float32)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _require_fit(self, rows: Sequence[Tokens], field: str, cut: Cut) -> None:
        limit = self.info.max_seq_len
        for at, row in enumerate(rows):
            if cut.tokens and len(row.ids) > cut.tokens:
                raise BadField(
                    "truncate_prompt_tokens",
                    f"truncate_prompt_tokens is {cut.tokens}, which leaves no room for text "
                    "beside the special tokens",
                )
            if len(row.ids) > limit:
                raise BadField(
                    field,
                    f"{field}[{at}] has {len(row.ids)} tokens, and the model takes {limit}; "
                    "truncate_prompt_tokens -1 would leave out the rest",
                    "context_length_exceeded",
                )
            if not row.ids:
                raise BadField(field, f"{field}[{at}] has no tokens")


def unit(vectors: Array) -> Array:
    """Vectors of length 1; those of length 0 stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def _cut(ids: list[int], cut: Cut) -> list[int]:
    if not cut.tokens:
        return ids
    return ids[-cut.tokens :] if cut.side == "left" else ids[: cut.tokens]


def _size(text: Text) -> int:
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
