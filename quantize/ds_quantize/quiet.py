"""Libraries that warn, log and print what is of no use to the user."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def quieted(loggers: Iterable[str], *, prints: bool) -> Iterator[None]:
    """Without warnings, these loggers and standard error; `prints`: nor what is printed."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    aside = io.StringIO()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(contextlib.redirect_stderr(aside))
            if prints:
                stack.enter_context(contextlib.redirect_stdout(aside))
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
