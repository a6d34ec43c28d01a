"""The models whose start is measured, each with one request."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loadtests.peers import workloads
from loadtests.perf_analyzer import BenchmarkError
from loadtests.scenarios import Arrays, chat, magika, mlp, ocr, recommender

PROMPT = "What is the capital of France?"
ONNX, OPENVINO = "onnxruntime", "openvino-genai"
LIBRARIES = {ONNX: "ONNX Runtime", OPENVINO: "OpenVINO GenAI"}


@dataclass(frozen=True)
class Subject:
    """A model: its file, and one request, of tensors unless it is a text model."""

    name: str
    engine: str
    file: Path
    request: Arrays = field(default_factory=dict)
    size: int = field(init=False)
    """Bytes of all its files."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sum(file.stat().st_size for file in self.files))

    @property
    def files(self) -> list[Path]:
        """With the one that holds large weights, where there is one."""
        beside = self.file.with_name(f"{self.file.name}.data")
        return [self.file, beside] if beside.exists() else [self.file]


def _mlp(folder: Path) -> Subject:
    return _of("mlp", mlp.model(folder), next(mlp.requests(0)))


def _magika(folder: Path) -> Subject:
    return Subject("magika", ONNX, fetched(magika.model(folder)), next(magika.requests(0)))


def _silero(folder: Path) -> Subject:
    """One piece of sound of 32 ms at 16 kHz, with the 64 samples before it, and no state yet."""
    request: Arrays = {
        "input": np.zeros((1, 576), np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16_000, np.int64),
    }
    return Subject("silero-vad", ONNX, fetched("silero-vad"), request)


def _encoder(folder: Path) -> Subject:
    work = workloads.ENCODER
    return Subject("encoder", ONNX, workloads.write(work, folder), {work.input: work.rows(1)})


def _ocr(folder: Path) -> Subject:
    return _of("ocr", ocr.model(folder), next(ocr.requests(0)))


def _recommender(folder: Path) -> Subject:
    return _of("recommender", recommender.model(folder), next(recommender.requests(0)))


def _chat(folder: Path) -> Subject:
    return Subject(chat.NAME, OPENVINO, fetched(chat.NAME))


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "mlp": _mlp,
    "silero-vad": _silero,
    "magika": _magika,
    "ocr": _ocr,
    "encoder": _encoder,
    "recommender": _recommender,
    chat.NAME: _chat,
}
"""By name; each is given a folder for what it has to build. Raises BenchmarkError, ValueError."""


def _of(name: str, model: str, request: Arrays) -> Subject:
    return Subject(name, ONNX, Path(model.partition("=")[2]), request)


def fetched(name: str) -> Path:
    """The file of a catalogue entry. Raises BenchmarkError."""
    command = [sys.executable, "-m", "ds_serve.catalogue", "fetch", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{name} cannot be fetched: {done.stderr.strip()[-500:]}")
    return Path(done.stdout.strip().splitlines()[-1])
