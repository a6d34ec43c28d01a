"""The worker's command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ds_engines.errors import ConfigError
from ds_engines.openvino_sampling import TextConfig
from ds_serve import logs


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How one text worker runs; the flags' defaults are the fields'. Times are in seconds.

    `max_queue_size` bounds the answers waiting or running. A `request_timeout` of 0 is none.
    """

    uds: Path
    model: str
    artifact: Path
    threads: int = 0
    max_seq_len: int = 0
    max_num_seqs: int = 64
    max_queue_size: int = 256
    cache_size_mb: int = 0
    memory_efficient: bool = False
    prefix_caching: bool = True
    lora: tuple[tuple[str, str], ...] = ()
    chat_template: str = ""
    allow_unverified: bool = False
    request_timeout: float = 0.0
    drain_timeout: float = 30.0
    hang_timeout: float = 30.0
    log_format: str = "text"
    log_level: str = "info"
    parent_pid: int = 0

    @property
    def engine(self) -> TextConfig:
        return TextConfig(
            artifact=self.artifact,
            threads=self.threads,
            max_seq_len=self.max_seq_len,
            max_seqs=self.max_num_seqs,
            cache_mb=self.cache_size_mb,
            memory_efficient=self.memory_efficient,
            prefix_caching=self.prefix_caching,
            lora=self.lora,
        )

    def template(self) -> str:
        """The text of the chat template that takes the place of the model's; "" where none does.

        Raises ConfigError.
        """
        if not self.chat_template:
            return ""
        try:
            return Path(self.chat_template).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"--chat-template {self.chat_template}: {error}") from error


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def _adapter(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, path


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


def parse(arguments: Sequence[str]) -> Settings:
    """The settings that a command line asks for; a wrong flag ends the process with code 2."""
    parser = argparse.ArgumentParser(prog="python -m ds_serve.text", description=__doc__)
    defaults = {field.name: field.default for field in msgspec.structs.fields(Settings)}

    def flag(name: str, **options: object) -> None:
        field = name.replace("-", "_")
        parser.add_argument(f"--{name}", default=defaults[field], **options)  # type: ignore[arg-type]

    parser.add_argument("--uds", type=Path, required=True, help="path of the socket to listen on")
    parser.add_argument("--model", required=True, help="the name that clients call the model by")
    parser.add_argument(
        "--artifact", type=Path, required=True, help="the GGUF file, or the OpenVINO folder"
    )
    flag("threads", type=at_least(0), help="engine threads; 0: the library's choice")
    flag("max-seq-len", type=at_least(0), help="prompt and answer together; 0: the model's")
    flag("max-num-seqs", type=at_least(1), help="sequences in one batch")
    flag("max-queue-size", type=at_least(1), help="answers waiting or running")
    flag("cache-size-mb", type=at_least(0), help="memory of the KV cache; 0: a default")
    flag("memory-efficient", action="store_true", help="a smaller KV cache")
    flag("prefix-caching", type=_boolean, help="whether prompts share their cached beginnings")
    parser.add_argument(
        "--lora", type=_adapter, action="append", default=[], metavar="NAME=PATH",
        help="an adapter, called by its name; several times",
    )  # fmt: skip
    flag("chat-template", metavar="FILE", help="instead of the model's own")
    flag("allow-unverified", action="store_true", help="whatever a manifest says")
    flag("request-timeout", type=at_least(0, float), help="seconds; 0: none")
    flag("drain-timeout", type=at_least(0, float), help="seconds to finish after SIGTERM")
    flag("hang-timeout", type=at_least(0, float), help="seconds that one step may take")
    flag("log-format", choices=logs.FORMATS)
    flag("log-level", choices=logs.LEVELS)
    flag("parent-pid", type=at_least(0), help="die with this parent process")
    given = vars(parser.parse_args(arguments))
    return Settings(**given | {"lora": tuple(given["lora"])})
