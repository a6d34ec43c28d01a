"""The names of an output's elements, one a line, in a file of the model's folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from ds_engines.errors import ConfigError
from ds_engines.spec import ModelSpec, TensorSpec
from ds_proto.model_config_pb2 import ModelOutput


def labelled(
    spec: ModelSpec, given: Iterable[ModelOutput], folder: Path, source: str
) -> tuple[TensorSpec, ...]:
    """The outputs with the names that `label_filename` holds. Raises ConfigError."""
    labels = {
        output.name: _labels(folder, output.label_filename, f"{source}: output {output.name!r}")
        for output in given
        if output.label_filename
    }
    return tuple(
        msgspec.structs.replace(output, labels=labels.get(output.name, output.labels))
        for output in spec.outputs
    )


def _labels(folder: Path, name: str, where: str) -> tuple[str, ...]:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConfigError(
            f"{where}: label_filename {name!r} must be a path below the model's folder"
        )
    try:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{where}: label_filename {name!r} in {folder} cannot be read: {error}"
        ) from None
    return tuple(line.rstrip() for line in lines)
