"""The one model that all text servers get: the catalogue's GGUF file, and a folder made of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from loadtests.peers import environments
from loadtests.peers.base import APPS
from loadtests.perf_analyzer import BenchmarkError
from loadtests.start_up.subjects import fetched

NAME = "smollm2-135m-instruct"
MAKERS = ("transformers", "vllm")
"""Environments that can make the folder."""


def gguf() -> Path:
    """What ds-serve loads: 4-bit weights. Raises BenchmarkError."""
    return fetched(NAME)


def hugging_face() -> Path:
    """What the others load: the same weights, as 16-bit numbers; made once, below the cache.

    Raises BenchmarkError where no environment that can make it is installed.
    """
    folder = environments.CACHE / "models" / NAME
    if not folder.exists():
        maker = next((key for key in MAKERS if environments.installed(key)), MAKERS[0])
        unfinished = folder.with_name(f"{NAME}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _run(environments.python(maker), APPS / "gguf_to_hf.py", gguf(), unfinished)
        _run(sys.executable, "-m", "ds_engines.gguf_tokenizer", gguf(), "-o", unfinished)
        unfinished.rename(folder)
    return folder


def _run(*words: object) -> None:
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{NAME} could not be converted:\n{done.stderr.strip()[-1500:]}")
