"""What the command lines of all our text workers have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import msgspec

from ds_serve import logs


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The flags' defaults are the fields'. Times are in seconds, and 0 is none for
    `request_timeout`.
    """

    uds: Path
    model: str
    artifact: Path
    threads: int = 0
    max_seq_len: int = 0
    allow_unverified: bool = False
    request_timeout: float = 0.0
    drain_timeout: float = 30.0
    hang_timeout: float = 30.0
    log_format: str = "text"
    log_level: str = "info"
    parent_pid: int = 0


class Flags(argparse.ArgumentParser):
    """Of a worker with settings of a `kind`. The texts say what its artifact is, what
    `--max-seq-len` bounds, and what `--hang-timeout` does.
    """

    def __init__(
        self, kind: type[WorkerSettings], prog: str, *, artifact: str, bounds: str, hangs: str
    ) -> None:
        super().__init__(prog=prog, description="The worker's command line.")
        self._defaults = {field.name: field.default for field in msgspec.structs.fields(kind)}
        self.add_argument("--uds", type=Path, required=True, help="path of the socket to listen on")
        self.add_argument("--model", required=True, help="the name that clients call the model by")
        self.add_argument("--artifact", type=Path, required=True, help=artifact)
        self.flag("threads", type=at_least(0), help="engine threads; 0: the library's choice")
        self.flag("max-seq-len", type=at_least(0), help=bounds)
        self.flag("allow-unverified", action="store_true", help="whatever a manifest says")
        self.flag("request-timeout", type=at_least(0, float), help="seconds; 0: none")
        self.flag("drain-timeout", type=at_least(0, float), help="seconds to finish after SIGTERM")
        self.flag("hang-timeout", type=at_least(0, float), help=hangs)
        self.flag("log-format", choices=logs.FORMATS)
        self.flag("log-level", choices=logs.LEVELS)
        self.flag("parent-pid", type=at_least(0), help="die with this parent process")

    def flag(self, name: str, **options: object) -> None:
        """One whose default is its field's."""
        default = self._defaults[name.replace("-", "_")]
        self.add_argument(f"--{name}", default=default, **options)  # type: ignore[arg-type]


def at_least(least: int, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    return convert
