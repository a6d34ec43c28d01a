"""Recommendations: a user's last 50 items and 100 candidates to be scored in one request."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loadtests.models import recommender, table
from loadtests.models.recommender import CANDIDATES, CHOICES, EMBEDDED, HISTORY, PROFILE, STEPS
from loadtests.models.reference import Arrays, Reference, difference

ITEMS, EXPONENT = 25_000_000, 1.05
"""Items that there are, and how popularity falls: the k-th item is asked for as k ** -1.05."""

DRAWN_AT_ONCE = 64
"""Requests: numpy takes hardly more time for so many than for one."""


def model(folder: Path, **options: object) -> str:
    """What follows --model; the file is built in the folder.

    The one option is `table_mb`, the size of the embedding table in MB, 256 if not given.
    """
    unknown = sorted(set(options) - {"table_mb"})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: the recommender has only the option table_mb")
    megabytes = _number(options.get("table_mb", table.DEFAULT_MB))
    try:
        path = folder / f"recommender-{table.blocks_in(megabytes)}.onnx"
        if not path.exists():
            table.write(path, megabytes)
    except table.TableError as error:
        raise ValueError(str(error)) from None
    return f"recommender={path}"


def requests(seed: int) -> Iterator[Arrays]:
    """history INT32 [1, 50], candidates INT32 [1, 100], profile FP32 [1, 16] of one user each."""
    random = np.random.default_rng(seed)
    while True:
        ids = _items(random, (DRAWN_AT_ONCE, 1, STEPS + CHOICES))
        history, candidates = ids[..., :STEPS], ids[..., STEPS:]
        # Padding comes first, the newest item last. A third of the users has a full history.
        length = np.minimum(random.integers(1, STEPS * 3 // 2, (DRAWN_AT_ONCE, 1, 1)), STEPS)
        history[np.arange(STEPS) < STEPS - length] = 0
        profiles = random.standard_normal((DRAWN_AT_ONCE, 1, recommender.TRAITS), np.float32)
        for row in range(DRAWN_AT_ONCE):
            yield {
                HISTORY: history[row],
                CANDIDATES: candidates[row],
                PROFILE: profiles[row],
            }


def check(inputs: Arrays, outputs: Arrays) -> str | None:
    """Compares with ONNX Runtime called directly, without the table, whose size matters not."""
    ids = np.concatenate([inputs[HISTORY], inputs[CANDIDATES]], axis=1).astype(np.int32)
    known = {name: inputs[name] for name in (HISTORY, PROFILE)}
    return difference(_body().run({**known, EMBEDDED: table.embedded(ids)}), outputs)


@cache
def _body() -> Reference:
    return Reference(recommender.build_body())


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise ValueError(f"table_mb={value}: must be a number of megabytes") from None


def _items(random: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Ids by Zipf's law, drawn by the inverse of its (continuous) distribution.

    Multiplying with an odd number spreads the popular ones over the table, as hashing would.
    """
    power = 1 - EXPONENT
    ranks = ((ITEMS**power - 1) * random.random(shape) + 1) ** (1 / power)
    spread = ranks.astype(np.int64) * 2_654_435_761 % (2**31 - 1)
    ids: npt.NDArray[np.int32] = np.maximum(spread, 1).astype(np.int32)
    return ids
