"""How each text server is started, and what it calls the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from loadtests.peers.base import Launch
from loadtests.peers.text import model

CACHE_GB = 1
CACHE_TOKENS, BLOCK = 40_960, 32
"""The same in tokens: one of SmolLM2 takes 23 KB, in 30 layers of 3 heads of 64 numbers."""
LONGEST = 2048


@dataclass(frozen=True)
class TextSetup:
    """Where to listen, on how many cores; `python` is the server's own."""

    python: Path
    http: int
    cores: int

    def program(self, name: str) -> str:
        return str(self.python.parent / name)


class TextPeer(Protocol):
    """`key` names its environment. `body` is what its requests have besides the common fields."""

    key: str
    name: str
    chosen: str

    def launch(self, setup: TextSetup) -> Launch:
        """Raises BenchmarkError."""

    def model(self) -> str:
        """What requests call the model."""

    def body(self, tokens: int) -> Mapping[str, Any]:
        """What makes an answer exactly so many tokens long, where the server can."""


class DsServe:
    key, name = "ds-serve", "ds-serve"
    chosen = "as it comes: OpenVINO GenAI on the GGUF file's 4-bit weights"

    def launch(self, setup: TextSetup) -> Launch:
        command = [setup.program("ds-serve"), "--model", f"{model.NAME}={model.gguf()}"]
        return Launch([*command, "--http-port", str(setup.http), "--grpc-port", "0"])

    def model(self) -> str:
        return model.NAME

    def body(self, tokens: int) -> Mapping[str, Any]:
        return {"ignore_eos": True}


class Vllm:
    key, name = "vllm", "vLLM"
    chosen = "its server's CPU build, bf16, a KV cache of 1 GB, access log off"

    def launch(self, setup: TextSetup) -> Launch:
        # `vllm serve` looks for a package of that name, which the CPU build has not.
        command = [setup.program("python"), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(model.hugging_face())]
        command += ["--served-model-name", model.NAME, "--dtype", "bfloat16"]
        command += ["--host", "127.0.0.1", "--port", str(setup.http)]
        command += ["--max-model-len", str(LONGEST), "--disable-uvicorn-access-log"]
        return Launch(command, _offline() | {"VLLM_CPU_KVCACHE_SPACE": str(CACHE_GB)})

    def model(self) -> str:
        return model.NAME

    def body(self, tokens: int) -> Mapping[str, Any]:
        return {"ignore_eos": True}


class Transformers:
    key, name = "transformers", "transformers serve"
    chosen = "bf16, continuous batching, a KV cache of 1 GB instead of nearly all memory"

    def launch(self, setup: TextSetup) -> Launch:
        command = [setup.program("transformers"), "serve", str(model.hugging_face())]
        command += ["--host", "127.0.0.1", "--port", str(setup.http), "--device", "cpu"]
        command += ["--dtype", "bfloat16", "--continuous-batching"]
        # By default its KV cache takes nearly all of the machine's memory.
        command += ["--cb-block-size", str(BLOCK), "--cb-num-blocks", str(CACHE_TOKENS // BLOCK)]
        return Launch(command, _offline() | {"OMP_NUM_THREADS": str(setup.cores)})

    def model(self) -> str:
        return str(model.hugging_face())

    def body(self, tokens: int) -> Mapping[str, Any]:
        return {}


BASE = DsServe()
TEXT_PEERS: dict[str, TextPeer] = {peer.key: peer for peer in (BASE, Vllm(), Transformers())}


def _offline() -> dict[str, str]:
    """Nothing is asked of a model hub."""
    return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
