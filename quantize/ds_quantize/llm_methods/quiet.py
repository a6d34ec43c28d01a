"""The libraries' warnings, log lines and bars are of no use to the user."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

NOISY = ("torch", "transformers", "compressed_tensors", "llmcompressor")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without them. What goes to standard output is left alone: our own bars are there."""
    levels = {name: logging.getLogger(name).level for name in NOISY}
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
