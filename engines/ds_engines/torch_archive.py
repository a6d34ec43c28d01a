"""What PyTorch's zip archives are, told without PyTorch and without unpickling anything."""

from __future__ import annotations

import json
import platform
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ds_engines.errors import LoadError

Kind = Literal["exported", "aotinductor", "torchscript", "pickle"]

CODE: tuple[Kind, ...] = ("torchscript", "aotinductor")
"""Those that run code of their own, so that they are served to those alone who trust them."""

_WHAT: dict[Kind, str] = {
    "torchscript": "TorchScript, a program of its own that may read and write what the server may",
    "aotinductor": "an AOTInductor package, machine code that is run as it is",
}

_OLD_PROGRAM = "serialized_exported_program.json"


def kind(path: Path) -> Kind | None:
    """What the archive holds, by its members; None where it is another one, or none at all.

    `exported` is what torch.export.save writes, `aotinductor` code for one kind of processor,
    `pickle` what torch.save writes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            begin = min((member.header_offset for member in archive.infolist()), default=0)
    except (OSError, zipfile.BadZipFile):
        return None
    if begin:  # cut short: what was found is another archive inside
        return None
    inside = {name.partition("/")[2] for name in names}
    if _OLD_PROGRAM in names or any(name.startswith("models/") for name in inside):
        return "exported"
    if any(name.startswith("data/aotinductor/") for name in inside):
        return "aotinductor"
    if "constants.pkl" in inside:
        return "torchscript"
    return "pickle" if "data.pkl" in inside else None


def refuse_untrusted(path: Path, kind: Kind, trust: bool) -> None:
    """Raises LoadError for a file that runs code of its own, unless its writer is trusted."""
    if not trust:
        raise LoadError(f"{path} is {untrusted(kind)}")


def untrusted(kind: Kind) -> str:
    """What such a file is, and what to do."""
    return (
        f"{_WHAT[kind]}: give --trust if you trust who made it, or give what torch.export saved, "
        "or ONNX"
    )


def compiled_for(path: Path, device: str) -> Iterator[tuple[str, str, str]]:
    """What an AOTInductor package was compiled for and does not find here: kind of thing, its own,
    and what this is. `device` is cpu or cuda.
    """
    here = {
        "AOTI_DEVICE_KEY": ("device", device),
        "AOTI_MACHINE": ("processor", platform.machine()),
    }
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith("_metadata.json"):
                continue
            said = json.loads(archive.read(name))
            for key, (what, found) in here.items():
                if said.get(key, found) != found:
                    yield what, str(said[key]), found


def refuse_pickles(path: Path) -> None:
    """Raises LoadError for an exported program parts of which only unpickling could read: that
    runs whatever code the file's writer chose.
    """
    with zipfile.ZipFile(path) as archive:
        for part in _pickled(archive):
            raise LoadError(
                f"{path}: {part} is pickled, and unpickling runs code from the file; save it "
                "again with a newer torch.export.save, of a model that holds tensors alone"
            )


def _pickled(archive: zipfile.ZipFile) -> Iterator[str]:
    if _OLD_PROGRAM in archive.namelist():
        yield "the whole of this older format"
    for name in archive.namelist():
        if not name.endswith(("weights_config.json", "constants_config.json")):
            if "/data/weights/" in name or "/data/constants/" in name:
                yield from _old_part(name)
            continue
        for tensor, payload in json.loads(archive.read(name))["config"].items():
            of_objects = payload["path_name"].startswith(("custom_obj", "opaque_obj"))
            if payload.get("use_pickle") or of_objects:
                yield tensor


def _old_part(name: str) -> Iterator[str]:
    """Files of all weights together are pickles; the others hold one tensor's bytes."""
    if name.endswith(".pt"):
        yield name.partition("/")[2]
