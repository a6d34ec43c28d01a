"""Files of many types: found in Python, its packages and this repository, or made by the standard
library's own writers. The names are Magika's.
"""

from __future__ import annotations

import bz2
import difflib
import email.message
import gzip
import inspect
import io
import json
import lzma
import pickle
import plistlib
import py_compile
import pydoc
import sqlite3
import sys
import tarfile
import tempfile
import wave
import zipfile
import zlib
from collections.abc import Callable
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx

REPOSITORY = Path(__file__).parents[2]
PYTHON = Path(inspect.getfile(inspect)).parent
"""The standard library."""


def all_files() -> dict[str, bytes]:
    """Type to content."""
    return {name: make() for name, make in MAKERS.items()}


def _read(path: Path) -> Callable[[], bytes]:
    return path.read_bytes


def _written(write: Callable[[Path], object], name: str = "file") -> bytes:
    """What `write` writes to the path that it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        write(path)
        return path.read_bytes()


def _python() -> bytes:
    return Path(inspect.getfile(difflib)).read_bytes()


def _png() -> bytes:
    """A picture of 64 x 64 pixels, red to green from left to right."""
    row = b"\0" + b"".join(bytes([4 * x, 255 - 4 * x, 0]) for x in range(64))
    parts = [
        (b"IHDR", (64).to_bytes(4) * 2 + b"\x08\x02\0\0\0"),
        (b"IDAT", zlib.compress(row * 64)),
        (b"IEND", b""),
    ]
    chunks = [
        len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _bmp() -> bytes:
    pixels = bytes(range(256)) * 48
    head = b"BM" + (54 + len(pixels)).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    fields = [(40, 4), (64, 4), (64, 4), (1, 2), (24, 2), (0, 4), (len(pixels), 4), (2835, 4),
              (2835, 4), (0, 4), (0, 4)]  # fmt: skip
    return head + b"".join(value.to_bytes(size, "little") for value, size in fields) + pixels


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(PYTHON.glob("json/*.py")):
            archive.write(path, path.name)
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for path in sorted(PYTHON.glob("json/*.py")):
            archive.add(path, path.name)
    return file.getvalue()


def _wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        tone = 9000 * np.sin(np.arange(16_000) / 16_000 * 2 * np.pi * 440)
        sound.writeframes(tone.astype("<i2").tobytes())
    return file.getvalue()


def _database() -> sqlite3.Connection:
    made = sqlite3.connect(":memory:")
    made.execute("CREATE TABLE files (id INTEGER PRIMARY KEY, name TEXT NOT NULL, size INTEGER)")
    rows = [(path.name, path.stat().st_size) for path in sorted(PYTHON.glob("*.py"))[:50]]
    made.executemany("INSERT INTO files (name, size) VALUES (?, ?)", rows)
    made.commit()
    return made


def _sql() -> bytes:
    return "\n".join(_database().iterdump()).encode()


def _xml() -> bytes:
    root = ElementTree.Element("catalogue", {"version": "1"})
    for path in sorted(PYTHON.glob("*.py"))[:30]:
        module = ElementTree.SubElement(root, "module", {"name": path.stem})
        ElementTree.SubElement(module, "size").text = str(path.stat().st_size)
    ElementTree.indent(root)
    return ElementTree.tostring(root, "utf-8", xml_declaration=True)


def _html() -> bytes:
    document = pydoc.HTMLDoc()
    return document.page("json", document.docmodule(json)).encode()


def _json() -> bytes:
    found = {path.name: path.stat().st_size for path in sorted(PYTHON.glob("*.py"))}
    return json.dumps({"folder": "lib", "files": found, "whole": True}, indent=2).encode()


def _csv() -> bytes:
    rows = [f"{path.stem},{path.stat().st_size},{len(path.stem)}" for path in PYTHON.glob("*.py")]
    return "\n".join(["name,size,letters", *sorted(rows)]).encode()


def _diff() -> bytes:
    old = _python().decode().splitlines(keepends=True)[:200]
    new = [line.replace("self", "this") for line in old]
    return "".join(difflib.unified_diff(old, new, "a/difflib.py", "b/difflib.py")).encode()


def _eml() -> bytes:
    message: email.message.Message = MIMEMultipart()
    message["From"] = "Ada <ada@example.org>"
    message["To"] = "Charles <charles@example.org>"
    message["Subject"] = "Notes on the engine"
    message["Date"] = "Tue, 10 Oct 1843 10:00:00 +0000"
    message["Message-ID"] = "<1843.note.g@example.org>"
    message.attach(MIMEText("The engine can do whatever we know how to order it to perform.\n" * 9))
    return message.as_bytes()


def _settings() -> dict[str, object]:
    found = {path.stem: path.stat().st_size for path in sorted(PYTHON.glob("*.py"))[:40]}
    return {"CFBundleName": "Example", "CFBundleVersion": "1.0", "Sizes": found}


def _notebook() -> bytes:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Sums\n", "of some numbers"]},
        {"cell_type": "code", "execution_count": 1, "metadata": {}, "outputs": [],
         "source": ["import numpy as np\n", "np.arange(9).sum()"]},
    ]  # fmt: skip
    about = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    whole = {"cells": cells * 3, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1).encode()


def _svg() -> bytes:
    bars = "\n".join(
        f'  <rect x="{10 * i}" y="{i}" width="8" height="{9 * i}" fill="teal"/>' for i in range(30)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 300 300">\n{bars}\n</svg>'.encode()
    )


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(1000.0))
    return file.getvalue()


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, weights=np.arange(1000.0), bias=np.ones(10))
    return file.getvalue()


def _bytecode() -> bytes:
    source = inspect.getfile(difflib)
    return _written(lambda path: py_compile.compile(source, str(path), doraise=True))


def _elf() -> bytes:
    return Path(sys.executable).resolve().read_bytes()


MAKERS: dict[str, Callable[[], bytes]] = {
    "python": _python,
    "pythonbytecode": _bytecode,
    "json": _json,
    "xml": _xml,
    "html": _html,
    "css": _read(PYTHON / "pydoc_data" / "_pydoc.css"),
    "c": _read(Path(np.get_include()) / "numpy" / "ndarraytypes.h"),
    "shell": _read(REPOSITORY / "scripts" / "setup"),
    "markdown": _read(REPOSITORY / "README.md"),
    "toml": _read(REPOSITORY / "pyproject.toml"),
    "yaml": _read(REPOSITORY / ".pre-commit-config.yaml"),
    "makefile": _read(REPOSITORY / "Makefile"),
    "proto": _read(REPOSITORY / "proto/grpc_service.proto"),
    "txt": _read(REPOSITORY / "LICENSE"),
    "elf": _elf,
    "png": _png,
    "bmp": _bmp,
    "zip": _zip,
    "gzip": lambda: gzip.compress(_python()),
    "bzip": lambda: bz2.compress(_python()),
    "xz": lambda: lzma.compress(_python()),
    "zlibstream": lambda: zlib.compress(_python()),
    "tar": _tar,
    "wav": _wav,
    "sqlite": lambda: _database().serialize(),
    "sql": _sql,
    "pickle": lambda: pickle.dumps(_settings()),
    "npy": _npy,
    "npz": _npz,
    "onnx": _read(
        Path(inspect.getfile(onnx)).parent / "backend/test/data/light/light_resnet50.onnx"
    ),
    "applebplist": lambda: plistlib.dumps(_settings(), fmt=plistlib.FMT_BINARY),
    "appleplist": lambda: plistlib.dumps(_settings()),
    "csv": _csv,
    "diff": _diff,
    "eml": _eml,
    "ipynb": _notebook,
    "svg": _svg,
    "cpp": _read(Path(inspect.getfile(onnx)).parent / "checker.cc"),
}
