"""The whole ensemble behind the real server: photographs a second, and what it answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from ds_client import Client
from loadtests import server
from loadtests.vision import example
from loadtests.vision.boards import Board
from loadtests.vision.matching import Boxes, Outcome, outcome

CLIENTS = 4


@dataclass(frozen=True)
class Served:
    """`alone`: milliseconds of a photograph, the median, when nothing else is asked; `rate`:
    photographs a second with `clients` at once, the median of the rounds; `found`: on the boards.
    """

    alone: float
    rate: float
    clients: int
    found: Outcome


def served(
    detectors: Mapping[str, Path],
    boards: Sequence[Board],
    folder: Path,
    clients: int = CLIENTS,
    rounds: int = 3,
) -> dict[str, Served]:
    """Each file as the detector of the example's repository, in a server of its own, by name. They
    are asked in turns, so that all have the same share of a machine that does other work too.
    """
    pictures = [example.jpeg(made.picture) for made in boards]
    with ExitStack() as stack:
        asked = {
            name: stack.enter_context(_running(detector, folder / name))
            for name, detector in detectors.items()
        }
        answers = {  # the first ones warm it up
            name: [_asked(client, picture) for picture in pictures]
            for name, client in asked.items()
        }
        times: dict[str, list[float]] = {name: [] for name in asked}
        for picture in pictures:
            for name, client in asked.items():
                times[name].append(_timed(client, picture))
        rates: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(rounds):
            for name, client in asked.items():
                rates[name].append(_rate(client, pictures, clients))
    true = [Boxes(made.boxes, made.classes, np.ones(len(made.boxes))) for made in boards]
    return {
        name: Served(
            1000 * median(times[name]),
            median(rates[name]),
            clients,
            outcome(list(zip(answers[name], true, strict=True))),
        )
        for name in asked
    }


@contextmanager
def _running(detector: Path, folder: Path) -> Iterator[Client]:
    example.copied(folder, detector)
    with server.running(str(folder)) as running, Client(running.grpc, timeout=120) as client:
        yield client


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
