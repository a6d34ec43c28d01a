"""The whole ensemble behind the real server: photographs a second, and what it answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from ds_client import Client
from loadtests import server
from loadtests.vision import example
from loadtests.vision.boards import Board
from loadtests.vision.matching import Boxes, Outcome, outcome

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Served:
    """`alone`: milliseconds of a photograph, the median, when nothing else is asked; `rate`:
    photographs a second with `clients` at once; `found`: on the boards.
    """

    alone: float
    rate: float
    clients: int
    found: Outcome


def served(
    detector: Path, boards: Sequence[Board], folder: Path, clients: int = 4, rounds: int = 2
) -> Served:
    """The example's repository with this file as the detector, copied to `folder`."""
    example.copied(folder, detector)
    pictures = [example.jpeg(made.picture) for made in boards]
    with server.running(str(folder)) as running, Client(running.grpc, timeout=60) as client:
        answers = [_asked(client, picture) for picture in pictures]  # the first ones warm it up
        times = [_timed(client, picture) for picture in pictures]
        rate = _rate(client, pictures * rounds, clients)
    true = [Boxes(made.boxes, made.classes, np.ones(len(made.boxes))) for made in boards]
    found = outcome(list(zip(answers, true, strict=True)))
    return Served(1000 * median(times), rate, clients, found)


def _asked(client: Client, picture: bytes) -> Boxes:
    answer = client.infer("inspection", {"jpeg": np.array([picture], np.object_)})
    return Boxes(answer["boxes"], answer["classes"], answer["scores"])


def _timed(client: Client, picture: bytes) -> float:
    began = time.perf_counter()
    _asked(client, picture)
    return time.perf_counter() - began


def _rate(client: Client, pictures: Sequence[bytes], clients: int) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for _ in pool.map(lambda picture: _asked(client, picture), pictures):
            pass
    return len(pictures) / (time.perf_counter() - began)
