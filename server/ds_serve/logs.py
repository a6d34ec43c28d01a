"""Logs of all processes: lines for a person, or one JSON object a line for a machine."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import msgspec
import orjson

log = logging.getLogger(__name__)

LEVELS = ("debug", "info", "warning", "error")
ISO = "ISO8601"
"""As a format: lines for a person, with whole dates."""

FORMATS = ("text", "json", ISO)


_NUMBERS = {level: logging.getLevelNamesMapping()[level.upper()] for level in LEVELS}


class LogSettings(msgspec.Struct, frozen=True):
    """Triton's log settings, by Triton's names, but for the file: logs go to standard error.

    With a `log_verbose_level` above 0 all is logged that helps to find a fault. `log_format` is
    text, json or ISO8601.
    """

    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose_level: int = 0
    log_format: str = "text"

    @classmethod
    def at(cls, level: str, log_format: str) -> LogSettings:
        """Those that log this level and all above it."""
        least = LEVELS.index(level)
        return cls(least <= 1, least <= 2, True, int(least == 0), log_format)

    @property
    def level(self) -> str:
        """The level that comes closest, for processes that know but that."""
        return next((one for one in LEVELS if self.lets_pass(_NUMBERS[one])), LEVELS[-1])

    def lets_pass(self, level: int) -> bool:
        """Whether a record of this level is written; what is worse than an error always is."""
        if level < logging.INFO:
            return self.log_verbose_level > 0
        if level < logging.WARNING:
            return self.log_info
        if level < logging.ERROR:
            return self.log_warning
        return self.log_error or level > logging.ERROR


class JsonFormatter(logging.Formatter):
    """One object a record: time, level, process, logger, message, and the record's `fields`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


class TextFormatter(logging.Formatter):
    """`12:00:00.000 INFO  worker-magika  message key=value`; with `iso`, the date too."""

    def __init__(self, process: str, *, iso: bool = False) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03d %(levelname)-7s {process:<14} %(message)s")
        self.datefmt = "%Y-%m-%dT%H:%M:%S" if iso else "%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        fields = getattr(record, "fields", None)
        return line + "".join(f" {key}={value}" for key, value in (fields or {}).items())


def configure(log_format: str, level: str, process: str) -> None:
    """Send this process's logs to standard error."""
    apply(LogSettings.at(level, log_format), process)


def apply(settings: LogSettings, process: str) -> None:
    """Log by these settings from now on; `process` is how the lines call it."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter(process))
    else:
        handler.setFormatter(TextFormatter(process, iso=settings.log_format == ISO))
    handler.addFilter(lambda record: settings.lets_pass(record.levelno))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(next(filter(settings.lets_pass, _NUMBERS.values()), logging.CRITICAL))
    for noisy in ("asyncio", "aiohttp.access", "uvicorn.error", "grpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    log.debug("log settings: %s", settings)
