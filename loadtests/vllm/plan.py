"""What is to be measured, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loadtests.vllm.servers import Place


@dataclass(frozen=True)
class Plan:
    """`smollm2`: a Hugging Face folder of it; its tokenizer serves the shapes without weights.

    `share`: the part of the GPU's memory for each of two servers that are up at one time.
    """

    place: Place
    smollm2: Path
    size: str = "8b"
    large: str = "20b"
    tokens_in: int = 512
    tokens_out: int = 128
    requests: int = 1000
    warm: int = 200
    rounds: int = 2
    rates: tuple[float, ...] = (0.0, 40.0)
    longest: int = 8192
    share: float = 0.44
    prompts: tuple[int, ...] = (4096, 8192, 16384)
    clients: int = 32

    @property
    def tokenizer(self) -> Path:
        return self.smollm2

    @property
    def rehearsal(self) -> bool:
        return self.place.device == "cpu"


def rehearsal(place: Place, smollm2: Path) -> Plan:
    """The same on a processor, as small as can be: it shows that everything runs."""
    return Plan(
        place,
        smollm2,
        size="tiny",
        large="tiny",
        tokens_in=32,
        tokens_out=8,
        requests=12,
        warm=4,
        rounds=1,
        rates=(0.0, 4.0),
        longest=4096,
        prompts=(512, 1024),
        clients=4,
    )
