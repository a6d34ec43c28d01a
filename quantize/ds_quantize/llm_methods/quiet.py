"""The libraries' warnings, log lines and bars are of no use to the user."""

from __future__ import annotations

from contextlib import AbstractContextManager

from ds_quantize.quiet import quieted

NOISY = ("torch", "transformers", "compressed_tensors", "llmcompressor")


def quiet() -> AbstractContextManager[None]:
    """Without them. What goes to standard output is left alone: our own bars are there."""
    return quieted(NOISY, prints=False)
