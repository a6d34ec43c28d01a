"""The worker's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ds_engines.errors import ConfigError
from ds_engines.openvino_sampling import TextConfig
from ds_serve.text.worker_settings import Flags, WorkerSettings, at_least


class Settings(WorkerSettings, frozen=True, kw_only=True):
    """How one text worker runs. `max_queue_size` bounds the answers waiting or running."""

    max_num_seqs: int = 64
    max_queue_size: int = 256
    cache_size_mb: int = 0
    memory_efficient: bool = False
    prefix_caching: bool = True
    lora: tuple[tuple[str, str], ...] = ()
    chat_template: str = ""

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


def parse(arguments: Sequence[str]) -> Settings:
    """The settings that a command line asks for; a wrong flag ends the process with code 2."""
    flags = Flags(
        Settings,
        "python -m ds_serve.text",
        artifact="the GGUF file, or the OpenVINO folder",
        bounds="prompt and answer together; 0: the model's",
        hangs="seconds that one step may take",
    )
    flags.flag("max-num-seqs", type=at_least(1), help="sequences in one batch")
    flags.flag("max-queue-size", type=at_least(1), help="answers waiting or running")
    flags.flag("cache-size-mb", type=at_least(0), help="memory of the KV cache; 0: a default")
    flags.flag("memory-efficient", action="store_true", help="a smaller KV cache")
    flags.flag(
        "prefix-caching", type=_boolean, help="whether prompts share their cached beginnings"
    )
    flags.add_argument(
        "--lora", type=_adapter, action="append", default=[], metavar="NAME=PATH",
        help="an adapter, called by its name; several times",
    )  # fmt: skip
    flags.flag("chat-template", metavar="FILE", help="instead of the model's own")
    given = vars(flags.parse_args(arguments))
    return Settings(**given | {"lora": tuple(given["lora"])})
