"""A text model's tokenizer: text to token ids, chats to text, token ids to bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_engines.errors import InvalidRequest, LoadError
from ds_engines.gguf import GgufInfo
from ds_engines.openvino_model import ModelInfo, read_json, special_tokens

# The library keeps only the last tokens of a longer text, and says nothing.
LIMIT = 8192
# Between two words no byte-level BPE merges: a longer text can be cut there.
_SEAM = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")
_CONTROL = 3
_BYTE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


class TextTokenizer:
    """Encodes and renders through OpenVINO, decodes from the model's own vocabulary.

    `pieces[id]` is a token's bytes: b"" for a control token, which is never text, unless it is
    one of `kept`. A character may be spread over several tokens. `template` is the chat template,
    if there is one; `chosen` takes the place of the model's own. Raises LoadError where there is
    no usable tokenizer.
    """

    def __init__(self, info: ModelInfo, kept: Sequence[str] = (), chosen: str = "") -> None:
        import openvino_genai  # type: ignore[import-untyped] # noqa: PLC0415

        try:
            self._tokenizer: Any = openvino_genai.Tokenizer(str(info.path))
        except Exception as error:  # the library's C++ errors arrive as many kinds
            raise LoadError(f"OpenVINO cannot read the tokenizer of {info.path}: {error}") from None
        control = _control_tokens(info)
        self.pieces = _keeping(_pieces(info), {control[t]: t for t in kept if t in control})
        self.longest_piece = max(len(piece) for piece in self.pieces)
        self._chosen = chosen
        self.template = chosen or info.chat_template
        self._spellings = {number: token for token, number in control.items()}
        self._prefix = _prefix(self._tokenizer, info)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The token ids of a plain prompt, with `special` the start token where there is one."""
        return [*(self._prefix if special else ()), *self._encode(text)]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        context: Mapping[str, Any] | None = None,
        answer: bool = True,
    ) -> list[int]:
        """The token ids of a chat, with `answer` ending where the assistant speaks next.

        A template that knows no `tools` gets them in the library's own words. `context` has more
        names for the template. Raises InvalidRequest where it refuses the messages.
        """
        said: dict[str, Any] = {"chat_template": self._chosen} if self._chosen else {}
        if tools:
            said["tools"] = list(tools)
        if context:
            said["extra_context"] = dict(context)
        try:
            text = self._tokenizer.apply_chat_template(list(messages), answer, **said)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InvalidRequest(f"messages: the chat template refuses them: {reason}") from error
        return self._encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, control tokens by their spelling."""
        return b"".join(map(self._bytes, ids)).decode("utf-8", "replace")

    def _bytes(self, number: int) -> bytes:
        spelling = self._spellings.get(number)
        return self.pieces[number] if spelling is None else spelling.encode()

    def spelling(self, number: int) -> str:
        """One token as text."""
        return self.decode([number])

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


def _prefix(tokenizer: Any, info: ModelInfo) -> list[int]:
    if info.gguf is not None:
        start = info.gguf.bos_token_id
        return [start] if info.gguf.add_bos and start is not None else []
    ids: list[int] = tokenizer.encode("", add_special_tokens=True).input_ids.data.reshape(-1)
    return [int(number) for number in ids]


def _control_tokens(info: ModelInfo) -> dict[str, int]:
    return special_tokens(info.path) if info.gguf is None else info.gguf.control_tokens()


def _keeping(pieces: tuple[bytes, ...], kept: dict[int, str]) -> tuple[bytes, ...]:
    return tuple(kept[i].encode() if i in kept else piece for i, piece in enumerate(pieces))


def _pieces(info: ModelInfo) -> tuple[bytes, ...]:
    if info.gguf is not None:
        return byte_pieces(info.gguf)
    return folder_pieces(info.path, info.vocabulary)


def byte_pieces(info: GgufInfo) -> tuple[bytes, ...]:
    """Each token's bytes, from the printable stand-ins that byte-level BPE spells them with."""
    table = _byte_table()
    return tuple(
        b"" if kind == _CONTROL else _piece(token, table)
        for token, kind in zip(info.vocabulary, info.token_types, strict=True)
    )


def folder_pieces(folder: Path, vocabulary: int) -> tuple[bytes, ...]:
    """Each token's bytes as a folder's tokenizer.json spells them. Raises LoadError."""
    file = folder / "tokenizer.json"
    said = read_json(file)
    try:
        words = said["model"]["vocab"]
        if isinstance(words, list):  # of pairs with a score
            words = {word[0]: number for number, word in enumerate(words)}
        by_bytes = "ByteLevel" in str(said.get("decoder"))
        found = _spelled(words, _byte_table() if by_bytes else None)
        for token in said.get("added_tokens", []):
            found[token["id"]] = b"" if token.get("special") else token["content"].encode()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LoadError(f"{file} has no vocabulary that can be read: {error!r}") from error
    size = max(vocabulary, max(found, default=-1) + 1)
    return tuple(found.get(number, b"") for number in range(size))


def _spelled(words: dict[str, int], table: dict[str, int] | None) -> dict[int, bytes]:
    if table is not None:
        return {number: _piece(token, table) for token, number in words.items()}
    return {number: _sentence_piece(token) for token, number in words.items()}


def _sentence_piece(token: str) -> bytes:
    """SentencePiece: ▁ is a blank, and <0x0A> a byte that no other token has."""
    byte = _BYTE.match(token)
    return bytes([int(byte.group(1), 16)]) if byte else token.replace("\u2581", " ").encode()


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
