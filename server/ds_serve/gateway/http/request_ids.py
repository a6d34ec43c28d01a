"""A name for each request, in its answer and in every log line about it."""

from __future__ import annotations

import re
import secrets
from itertools import count

HEADER = b"x-request-id"

_ACCEPTED = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestIds:
    """Takes the client's id over where it is printable, otherwise counts."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(4)
        self._count = count(1)

    def of(self, given: bytes | None) -> bytes:
        if given is not None and _ACCEPTED.fullmatch(given):
            return given
        return f"{self._prefix}-{next(self._count):x}".encode()
