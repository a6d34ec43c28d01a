"""The worker's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ds_serve import logs
from ds_serve.text.settings import at_least

DTYPES = ("auto", "float32", "float", "bfloat16")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How one encoder's worker runs; the flags' defaults are the fields'. Times are in seconds.

    `max_batch_tokens` bounds a batch, `max_queue_tokens` what waits, padding included: on two
    cores MiniLM reads as many tokens a second in batches of 512 as in larger ones, and others wait
    for less. A `request_timeout` of 0 is none.
    """

    uds: Path
    model: str
    artifact: Path
    threads: int = 0
    max_seq_len: int = 0
    max_batch_tokens: int = 512
    max_queue_tokens: int = 1 << 19
    dtype: str = "auto"
    allow_unverified: bool = False
    request_timeout: float = 0.0
    drain_timeout: float = 30.0
    hang_timeout: float = 30.0
    log_format: str = "text"
    log_level: str = "info"
    parent_pid: int = 0


def parse(arguments: Sequence[str]) -> Settings:
    """The settings that a command line asks for; a wrong flag ends the process with code 2."""
    parser = argparse.ArgumentParser(prog="python -m ds_serve.embed", description=__doc__)
    defaults = {field.name: field.default for field in msgspec.structs.fields(Settings)}

    def flag(name: str, **options: object) -> None:
        field = name.replace("-", "_")
        parser.add_argument(f"--{name}", default=defaults[field], **options)  # type: ignore[arg-type]

    parser.add_argument("--uds", type=Path, required=True, help="path of the socket to listen on")
    parser.add_argument("--model", required=True, help="the name that clients call the model by")
    parser.add_argument("--artifact", type=Path, required=True, help="the Hugging Face folder")
    flag("threads", type=at_least(0), help="engine threads; 0: the library's choice")
    flag("max-seq-len", type=at_least(0), help="tokens of one input; 0: the folder's")
    flag("max-batch-tokens", type=at_least(1), help="tokens in one batch, with padding")
    flag("max-queue-tokens", type=at_least(1), help="tokens that may wait, with padding")
    flag("dtype", choices=DTYPES, help="what is computed in; auto: float32")
    flag("allow-unverified", action="store_true", help="whatever a manifest says")
    flag("request-timeout", type=at_least(0, float), help="seconds; 0: none")
    flag("drain-timeout", type=at_least(0, float), help="seconds to finish after SIGTERM")
    flag("hang-timeout", type=at_least(0, float), help="seconds that one batch may take")
    flag("log-format", choices=logs.FORMATS)
    flag("log-level", choices=logs.LEVELS)
    flag("parent-pid", type=at_least(0), help="die with this parent process")
    return Settings(**vars(parser.parse_args(arguments)))
