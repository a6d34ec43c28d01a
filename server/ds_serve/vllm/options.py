"""What one text model is served with: the server's settings, or its own after `?`.

`--model chat=PATH?tensor_parallel=2&max_seq_len=8192` gives a model settings of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import msgspec

from ds_engines.errors import ConfigError

if TYPE_CHECKING:
    from ds_serve.models import ModelSource
    from ds_serve.settings import Settings

DTYPES = ("auto", "bfloat16", "float16", "half", "float32", "float")

_LONG = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Names that tensor models' numbers have, and vLLM's."""

Given = tuple[tuple[str, str], ...]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By the names of the server's settings. `lora`: adapters, each as NAME=PATH."""

    max_seq_len: int = 0
    memory_efficient: bool = False
    quantization: str = ""
    dtype: str = "auto"
    device: str = "auto"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    replicas: int = 1
    prefix_caching: bool = True
    chat_template: str = ""
    lora: tuple[str, ...] = ()

    @property
    def adapters(self) -> dict[str, str]:
        """Path by name. Raises ConfigError for one that is not NAME=PATH, or two of one name."""
        found: dict[str, str] = {}
        for each in self.lora:
            name, equals, path = each.partition("=")
            if not (name and equals and path):
                raise ConfigError(f"--lora {each}: it must be NAME=PATH")
            if name in found:
                raise ConfigError(f"--lora {each}: another adapter is called {name!r} already")
            found[name] = path
        return found


NAMES = Options.__struct_fields__
KEYS = ("engine", *NAMES)
"""What may follow `?`."""


def split(value: str) -> tuple[str, Given]:
    """A model and its own settings. Raises ConfigError for one that there is not."""
    model, mark, query = value.partition("?")
    if not mark:
        return value, ()
    try:
        given = tuple(parse_qsl(query, keep_blank_values=True, strict_parsing=True))
    except ValueError:
        raise ConfigError(
            f"--model {value}: after '?' stand settings as KEY=VALUE, joined by '&'"
        ) from None
    for key, _ in given:
        if key not in KEYS:
            raise ConfigError(
                f"--model {value}: no setting is called {key!r}; of {', '.join(KEYS)}"
            )
    return model, given


def own(given: Given, key: str) -> str:
    """A model's own setting, the last that was given; "" where there is none."""
    return next((value for name, value in reversed(given) if name == key), "")


def options(settings: Settings, source: ModelSource) -> Options:
    """What holds for this model. Raises ConfigError for a value that cannot be."""
    values = {name: getattr(settings, name) for name in NAMES}
    values["dtype"] = _LONG.get(settings.dtype, settings.dtype)
    for key, value in source.options:
        if key == "lora":
            first = values["lora"] is settings.lora
            values["lora"] = (value,) if first else (*values["lora"], value)
        elif key != "engine":
            values[key] = _LONG.get(value, value) if key == "dtype" else value
    try:
        made = msgspec.convert(values, Options, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"model {source.name!r}: {error}") from None
    _check(made, source.name)
    return made


def _check(made: Options, name: str) -> None:
    for key in ("tensor_parallel", "pipeline_parallel", "replicas"):
        if getattr(made, key) < 1:
            raise ConfigError(
                f"model {name!r}: {key} is {getattr(made, key)}; it must be 1 or more"
            )
    if made.max_seq_len < 0:
        raise ConfigError(
            f"model {name!r}: max_seq_len is {made.max_seq_len}; it must be 0 or more"
        )
    if made.dtype not in DTYPES:
        raise ConfigError(f"model {name!r}: dtype is {made.dtype!r}; of {', '.join(DTYPES)}")
