"""An encoder's tokenizer: texts, and pairs of texts, to token ids."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ds_engines.encoder_folder import EncoderInfo, read_json
from ds_engines.errors import InvalidRequest, LoadError

TOKENIZER = "tokenizer.json"

Text = str | tuple[str, str]
"""A text, or a pair that the network reads together."""


class Tokens(NamedTuple):
    """One row for the network; `types` tell the second text of a pair from the first."""

    ids: list[int]
    types: list[int]


class EncoderTokenizer:
    """Reads `tokenizer.json`. Safe to call from several threads.

    `size` is the number of ids. Raises LoadError where there is no usable tokenizer.
    """

    def __init__(self, info: EncoderInfo) -> None:
        # Its own threads would take the engine's processors; it reads this once.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._tokenizer = _read(info.folder)
        # The lengths that a folder was trained with are not those to serve with.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._lower = info.lower
        self._cutting = threading.Lock()
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(
        self, texts: Sequence[Text], special: bool = True, most: int = 0, side: str = "right"
    ) -> list[Tokens]:
        """Tokens of each. Those over `most`, where it is not 0, are left out at the `side`."""
        if self._lower:
            texts = [_lower(text) for text in texts]
        if not most:
            return self._encode(texts, special)
        with self._cutting:
            try:
                self._tokenizer.enable_truncation(most, direction=side)
                return self._encode(texts, special)
            finally:
                self._tokenizer.no_truncation()

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def spelling(self, token: int) -> str:
        return str(self._tokenizer.id_to_token(token))

    def _encode(self, texts: Sequence[Text], special: bool) -> list[Tokens]:
        try:
            found = self._tokenizer.encode_batch(list(texts), add_special_tokens=special)
        except Exception as error:  # the library's errors are bare Exceptions
            raise InvalidRequest(f"a text cannot be tokenized: {error}") from None
        return [Tokens(each.ids, each.type_ids) for each in found]


def _lower(text: Text) -> Text:
    return text.lower() if isinstance(text, str) else (text[0].lower(), text[1].lower())


def _read(folder: Path) -> Any:
    from tokenizers import BertWordPieceTokenizer, Tokenizer  # noqa: PLC0415

    try:
        if (folder / TOKENIZER).is_file():
            return Tokenizer.from_file(str(folder / TOKENIZER))
        if (folder / "vocab.txt").is_file():
            said = read_json(folder / "tokenizer_config.json", missing=True)
            lower = bool(said.get("do_lower_case", True))
            words = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lower)
            return words._tokenizer
    except Exception as error:  # the library's errors are bare Exceptions
        raise LoadError(f"the tokenizer of {folder} cannot be read: {error}") from None
    raise LoadError(
        f"{folder} holds no {TOKENIZER}; with Transformers, AutoTokenizer.from_pretrained(FOLDER)"
        ".save_pretrained(FOLDER) writes it"
    )
