"""The worker's command line."""

from __future__ import annotations

from collections.abc import Sequence

from ds_serve.text.worker_settings import Flags, WorkerSettings, at_least

DTYPES = ("auto", "float32", "float", "bfloat16")


class Settings(WorkerSettings, frozen=True, kw_only=True):
    """How one encoder's worker runs.

    `max_batch_tokens` bounds a batch, `max_queue_tokens` what waits, padding included: on two
    cores MiniLM reads as many tokens a second in batches of 512 as in larger ones, and others wait
    for less.
    """

    max_batch_tokens: int = 512
    max_queue_tokens: int = 1 << 19
    dtype: str = "auto"


def parse(arguments: Sequence[str]) -> Settings:
    """The settings that a command line asks for; a wrong flag ends the process with code 2."""
    flags = Flags(
        Settings,
        "python -m ds_serve.embed",
        artifact="the Hugging Face folder",
        bounds="tokens of one input; 0: the folder's",
        hangs="seconds that one batch may take",
    )
    flags.flag("max-batch-tokens", type=at_least(1), help="tokens in one batch, with padding")
    flags.flag("max-queue-tokens", type=at_least(1), help="tokens that may wait, with padding")
    flags.flag("dtype", choices=DTYPES, help="what is computed in; auto: float32")
    return Settings(**vars(flags.parse_args(arguments)))
