"""A model whose configuration, or all of whose files, a client has sent."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ds_engines.errors import InvalidRequest, LoadError
from ds_serve.models import CONFIG

PLACE = re.compile(r"([1-9][0-9]*)/([A-Za-z0-9_][A-Za-z0-9._-]*)")

LONGEST_NAME = 255
"""Characters of a file's name that a file system takes."""

CODE = frozenset({".py", ".pyc", ".pyo", ".pyd", ".pyw", ".pyi", ".pth", ".pkl", ".so"})
"""What an engine or the interpreter might run, which only an administrator may put here."""


def stage(home: Path, config: str | None, files: Mapping[str, bytes]) -> Path:
    """A new folder below `home` that holds what a client has sent, in a repository's layout.

    `config` is a ModelConfig as JSON, `files` are contents by `<version>/<name>`. Raises
    InvalidRequest for what may not be sent, and OSError.
    """
    places = {_place(path): data for path, data in files.items()}
    text = None if config is None else config_text(config)
    home.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=home))
    for (version, name), data in places.items():
        (folder / version).mkdir(exist_ok=True)
        (folder / version / name).write_bytes(data)
    if text is not None:
        (folder / CONFIG).write_text(text, encoding="utf-8")
    return folder


def config_text(config: str) -> str:
    """A ModelConfig in JSON as a config.pbtxt. Raises InvalidRequest that names the field."""
    from google.protobuf import json_format, text_format  # noqa: PLC0415 - see `folder`

    from ds_proto.model_config_pb2 import ModelConfig  # noqa: PLC0415

    try:
        fields = json.loads(config)
        if not isinstance(fields, dict):
            raise ValueError("it must be an object")
        message = json_format.ParseDict(fields, ModelConfig())
    except (ValueError, RecursionError, json_format.ParseError) as error:
        raise InvalidRequest(f"the parameter config is no ModelConfig in JSON: {error}") from None
    text = text_format.MessageToString(message)
    # A message cannot tell 0 from nothing said, a text can.
    if fields.get("max_batch_size", fields.get("maxBatchSize")) == 0:
        text += "max_batch_size: 0\n"
    return text


def _place(path: str) -> tuple[str, str]:
    """Version and name. Raises InvalidRequest for any other kind of path, and for code, and
    LoadError for a name that no folder can hold.
    """
    if any(len(part) > LONGEST_NAME for part in path.split("/")):
        # In Triton's words, and an error of its kind, which clients look for.
        raise LoadError(
            f"failed to poll from model repository: the file {path[:40]!r}... has a name of more "
            f"than {LONGEST_NAME} characters"
        )
    found = PLACE.fullmatch(path)
    if found is None:
        raise InvalidRequest(
            f"the file {path!r} cannot be placed: it must be <version>/<name>, such as 1/model.onnx"
        )
    if not CODE.isdisjoint(suffix.lower() for suffix in Path(path).suffixes):
        raise InvalidRequest(f"the file {path!r} may not be sent: it could hold code to run")
    return found[1], found[2]
