"""The names of an output's elements, one a line, in a file of the model's folder."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ds_engines.errors import ConfigError
from ds_engines.spec import ModelSpec, TensorSpec
from ds_proto.model_config_pb2 import ModelOutput


def labelled(spec: ModelSpec, tensor: TensorSpec, given: ModelOutput, source: str) -> TensorSpec:
    """The output with the names that `label_filename` holds. Raises ConfigError."""
    name = given.label_filename
    if not name:
        return tensor
    where = f"{source}: output {given.name!r}: label_filename {name!r}"
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConfigError(f"{where} must be a path below the model's folder")
    folders = (Path(source).parent, spec.artifact.parent, spec.artifact.parent.parent)
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None:
        raise ConfigError(f"{where} is not there: it is looked for in {folders[0]}")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from None
    return msgspec.structs.replace(tensor, labels=tuple(line.rstrip() for line in lines))
