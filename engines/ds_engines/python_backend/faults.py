"""Errors as model.py has them, and as the server has them."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from ds_engines import errors
from ds_engines.errors import ServeError


class TritonModelException(Exception):
    """What a model raises, and what is raised at it where it uses this module wrongly."""


class ErrorCode(IntEnum):
    """Triton's kinds of errors."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


_KINDS: dict[int, type[ServeError]] = {
    ErrorCode.NOT_FOUND: errors.NotFound,
    ErrorCode.INVALID_ARG: errors.InvalidRequest,
    ErrorCode.UNAVAILABLE: errors.Unavailable,
    ErrorCode.UNSUPPORTED: errors.Unsupported,
    ErrorCode.CANCELLED: errors.Cancelled,
}


class TritonError:
    """What went wrong with one request."""

    UNKNOWN: ClassVar[ErrorCode] = ErrorCode.UNKNOWN
    INTERNAL: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    NOT_FOUND: ClassVar[ErrorCode] = ErrorCode.NOT_FOUND
    INVALID_ARG: ClassVar[ErrorCode] = ErrorCode.INVALID_ARG
    UNAVAILABLE: ClassVar[ErrorCode] = ErrorCode.UNAVAILABLE
    UNSUPPORTED: ClassVar[ErrorCode] = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS: ClassVar[ErrorCode] = ErrorCode.ALREADY_EXISTS
    CANCELLED: ClassVar[ErrorCode] = ErrorCode.CANCELLED

    def __init__(self, message: str, code: int = ErrorCode.INTERNAL) -> None:
        self._message = str(message)
        self._code = ErrorCode(code)

    def message(self) -> str:
        return self._message

    def code(self) -> ErrorCode:
        return self._code

    def __str__(self) -> str:
        return self._message


def to_server(error: TritonError) -> ServeError:
    """The error as the server tells it to clients."""
    return _KINDS.get(error.code(), errors.EngineFailure)(error.message())


def to_model(error: ServeError) -> TritonError:
    """An error of another model, for the model that has called it."""
    for code, kind in _KINDS.items():
        if isinstance(error, kind):
            return TritonError(str(error), code)
    if isinstance(error, errors.Overloaded | errors.DeadlineExceeded):
        return TritonError(str(error), ErrorCode.UNAVAILABLE)
    return TritonError(str(error), ErrorCode.INTERNAL)
