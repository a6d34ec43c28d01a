"""The tokenizer inside a GGUF file: text to token ids, chats to text, token ids to bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_engines.errors import InvalidRequest, LoadError
from ds_engines.gguf import GgufInfo

# The library keeps only the last tokens of a longer text, and says nothing.
LIMIT = 8192
# Between two words no byte-level BPE merges: a longer text can be cut there.
_SEAM = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")
_CONTROL = 3


class TextTokenizer:
    """Encodes and renders through OpenVINO, decodes from the file's own vocabulary.

    `pieces[id]` is a token's bytes: b"" for a control token, which is never text. A character
    may be spread over several tokens. Raises LoadError where the file has no usable tokenizer.
    """

    def __init__(self, path: Path, info: GgufInfo) -> None:
        import openvino_genai  # type: ignore[import-untyped] # noqa: PLC0415

        try:
            self._tokenizer: Any = openvino_genai.Tokenizer(str(path))
        except Exception as error:  # the library's C++ errors arrive as many kinds
            raise LoadError(f"OpenVINO cannot read the tokenizer of {path}: {error}") from error
        self.pieces = byte_pieces(info)
        self.longest_piece = max(len(piece) for piece in self.pieces)
        self.has_template = info.chat_template is not None
        self._prefix = [info.bos_token_id] if info.add_bos and info.bos_token_id else []

    def encode(self, text: str) -> list[int]:
        """The token ids of a plain prompt, with the start token where the model wants one."""
        return self._prefix + self._encode(text)

    def render(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The token ids of a chat, ending where the assistant speaks next.

        Raises InvalidRequest where the chat template refuses the messages.
        """
        try:
            text = self._tokenizer.apply_chat_template(list(messages), True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InvalidRequest(f"messages: the chat template refuses them: {reason}") from error
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).input_ids
        found: list[int] = ids.data.reshape(-1).tolist()
        if len(found) < LIMIT:
            return found
        middle = _seam(text)
        return self._encode(text[:middle]) + self._encode(text[middle:])


def _seam(text: str) -> int:
    """A place near the middle where the text can be cut without changing its tokens."""
    half = len(text) // 2
    found = _SEAM.search(text, half)
    return found.start() if found else half


def byte_pieces(info: GgufInfo) -> tuple[bytes, ...]:
    """Each token's bytes, from the printable stand-ins that byte-level BPE spells them with."""
    table = _byte_table()
    return tuple(
        b"" if kind == _CONTROL else _piece(token, table)
        for token, kind in zip(info.vocabulary, info.token_types, strict=True)
    )


def _piece(token: str, table: dict[str, int]) -> bytes:
    try:
        return bytes([table[character] for character in token])
    except KeyError:  # an added token is spelled plainly
        return token.encode()


def _byte_table() -> dict[str, int]:
    """GPT-2's map: printable bytes stand for themselves, the others for characters from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}
