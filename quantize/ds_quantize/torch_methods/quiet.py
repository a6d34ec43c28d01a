"""PyTorch's libraries warn and print a lot that is of no use to the user."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

NOISY = ("torch", "torchao", "onnxscript", "onnx_ir", "modelopt")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' warnings, log lines and what they print."""
    levels = {name: logging.getLogger(name).level for name in NOISY}
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        aside = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(aside):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(aside):
                yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
