"""A Hugging Face folder made into the one that OpenVINO GenAI loads, once, and kept in the cache.

A process of its own converts, for PyTorch is large and is needed for nothing else:

    python -m ds_serve.text.convert FOLDER TARGET [int8 | int4]
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from ds_engines.errors import ConfigError, LoadError, ServeError
from ds_serve.catalogue import prune
from ds_serve.catalogue.cache import default_root, keep_made, locked, sync_folder

WEIGHTS = ("int8", "int4")
"""What the numbers of the weights may be made into; "" leaves them the 16 bits they have."""

ENCODER = "encoder"
"""In the place of weights: the folder gives vectors or classes."""

PYTHON = "DS_SERVE_CONVERT_PYTHON"
"""The environment variable that names another interpreter to convert with."""

FORMAT = 2
"""Counts up where the same folder would be converted into something else."""

ABOUT = "converted.json"
"""What a converted folder says of itself."""

INSTALL = "pip install 'ds-serve[convert]'"
_MODULE = "ds_serve.text.convert"
_STEP, _FAILED = "step: ", "failed: "
_BEFORE_WEIGHTS = 0.8
"""The share of all that is done when the weights' turn has come."""


class Progress(Protocol):
    """Told what is being done, a line for a person."""

    def note(self, text: str) -> None: ...


def openvino_folder(folder: Path, progress: Progress, weights: str = "") -> Path:
    """The folder for OpenVINO made from `folder`, of which there is one for each content. An
    ENCODER's becomes one that `ds_engines.encoder` reads.

    Takes minutes the first time. Raises ConfigError where it cannot be, saying exactly what to
    install where a library is missing.
    """
    if weights not in ("", ENCODER, *WEIGHTS):
        raise ConfigError(f"weights {weights!r} are none of {', '.join(WEIGHTS)}")
    root = default_root() / "openvino"
    try:
        root.mkdir(parents=True, exist_ok=True)
        name = f"{folder.name}-{weights}{'-' if weights else ''}{_key(root, folder)}"
        target = root / name
        lock = root / f".{name}.lock"
        keep_made(root.parent, root.name, name)
        with locked(lock, lambda: progress.note("another process converts; waiting for it")):
            if not target.is_dir():
                progress.note(f"converting {folder} for OpenVINO, once; it is kept in {target}")
                _convert(folder, target, progress, weights)
                prune.tidy(root.parent, progress)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be converted into {root}: {error.strerror or error} "
            f"({error.filename}); set DS_SERVE_CACHE to a folder that can be written"
        ) from error
    return target


def _convert(folder: Path, target: Path, progress: Progress, weights: str) -> None:
    """Into a folder beside it first: what is found under the name is whole."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _call(folder, part, progress, weights)
        part.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _call(folder: Path, part: Path, progress: Progress, weights: str) -> None:
    python = os.environ.get(PYTHON) or sys.executable
    command = [python, "-P", "-m", _MODULE, str(folder.absolute()), str(part), weights]
    said: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    ) as child:  # fmt: skip
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if line.startswith(_STEP):
                    progress.note(f"  {line.removeprefix(_STEP).strip()}")
                else:
                    said.append(line.strip())
        except BaseException:
            child.terminate()
            raise
    if child.returncode:
        raise ConfigError(_why(folder, python, child.returncode, said))


def _why(folder: Path, python: str, code: int, said: list[str]) -> str:
    told = [line.removeprefix(_FAILED) for line in said if line.startswith(_FAILED)]
    if told:
        return told[-1].replace('"ds-serve[convert]"', "'ds-serve[convert]'")
    if any("No module named" in line for line in said):
        return f"{folder} is a Hugging Face folder; to convert it with {python}: {INSTALL}"
    how = f"was killed by signal {-code}; is there enough memory?" if code < 0 else said[-1:]
    return f"{folder} cannot be converted: the conversion {how or f'ended with status {code}'}"


def _key(root: Path, folder: Path) -> str:
    """A hash over what is in the folder, and over what makes the result of it."""
    digest = hashlib.sha256(f"{FORMAT}".encode())
    # sentence-transformers has a folder for each step, such as 1_Pooling.
    there = [*folder.iterdir(), *folder.glob("[0-9]*_*/*")]
    for file in sorted(path for path in there if path.is_file()):
        if not file.name.startswith("."):
            name = file.relative_to(folder)
            digest.update(f"\0{name}\0{_content(root, file)}".encode())
    return digest.hexdigest()[:16]


def _content(root: Path, file: Path) -> str:
    """The hash of a file's content, remembered for as long as the file is not changed."""
    stat = file.stat()
    said = f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}"
    memo = root / ".hashes" / hashlib.sha256(said.encode()).hexdigest()
    try:
        return memo.read_text()
    except FileNotFoundError:
        pass
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    memo.parent.mkdir(exist_ok=True)
    unfinished = memo.with_name(f"{memo.name}.{os.getpid()}")
    unfinished.write_text(found)
    unfinished.replace(memo)
    return found


def weights_of(folder: Path) -> str:
    """What the weights of a converted folder were made into; "" for any other."""
    try:
        said = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return said if said in WEIGHTS else ""


def _tell(step: str, share: float) -> None:
    print(f"{_STEP}{share:4.0%} {step}", flush=True)


def _tell_first(step: str, share: float) -> None:
    """Of what is not the last part: that it is done is said later."""
    if share < 1:
        _tell(step, share * _BEFORE_WEIGHTS)


def _run(folder: Path, target: Path, weights: str) -> None:
    if weights == ENCODER:
        from ds_engines import encoder_export  # noqa: PLC0415

        encoder_export.export_folder(folder, target, _tell)
        return
    from ds_engines.openvino_export import export_folder  # noqa: PLC0415

    export_folder(folder, target, _tell_first if weights else _tell)
    if weights:
        from ds_engines.openvino_compress import compress  # noqa: PLC0415

        compress(target, weights, _tell)
        _tell("done", 1.0)
    else:
        _keep_cache(target / "openvino_model.xml")
    about = {"source": folder.name, "weights": weights, "format": FORMAT}
    (target / ABOUT).write_text(json.dumps(about))


def _keep_cache(model: Path) -> None:
    """Have keys and values remembered in 16 bits, where the weights have as many: with 8, small
    models answer worse. The library reads it there, and so do we.
    """
    head, end, tail = model.read_text(encoding="utf-8").rpartition("</rt_info>")
    assert end, "the library writes about the model at its end"
    option = '<KV_CACHE_PRECISION value="f16" />'
    said = f"<runtime_options>{option}</runtime_options>\n"
    model.write_text(head + said + end + tail, encoding="utf-8")


def main() -> int:
    """Convert what the command line says; the last line tells why it could not be."""
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        _run(folder, target, sys.argv[3] if len(sys.argv) > 3 else "")
    except (ConfigError, LoadError) as error:
        print(_FAILED + " ".join(str(error).split()), flush=True)
        return 1
    except ServeError as error:
        print(f"{_FAILED}{folder} cannot be converted: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
