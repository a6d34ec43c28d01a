"""The log as model.py has it."""

from __future__ import annotations

import logging
from enum import IntEnum

log = logging.getLogger("ds_engines.python_backend.model")


class LogLevel(IntEnum):
    """How much a message matters."""

    INFO = logging.INFO
    WARNING = logging.WARNING
    ERROR = logging.ERROR
    VERBOSE = logging.DEBUG


class Logger:
    """Writes to the server's log."""

    INFO, WARNING, ERROR, VERBOSE = (
        LogLevel.INFO, LogLevel.WARNING, LogLevel.ERROR, LogLevel.VERBOSE,
    )  # fmt: skip
    LogLevel = LogLevel

    @staticmethod
    def log(message: str, level: int = LogLevel.INFO) -> None:
        log.log(level, "%s", message)

    @staticmethod
    def log_info(message: str) -> None:
        log.info("%s", message)

    @staticmethod
    def log_warn(message: str) -> None:
        log.warning("%s", message)

    @staticmethod
    def log_error(message: str) -> None:
        log.error("%s", message)

    @staticmethod
    def log_verbose(message: str) -> None:
        log.debug("%s", message)
