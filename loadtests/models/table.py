"""The recommender's embedding table, in the ONNX file or, where that cannot hold it, beside it.

The table repeats one block of 65,536 random rows, and has a whole number of them. So an id's
embedding is that of its remainder by 65,536, whatever the table's size, and whoever knows the
block can tell whether an answer is right. Memory is read all over the table nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from loadtests.models import recommender
from loadtests.models.recommender import TABLE, WIDTH

BLOCK_ROWS = 65_536
BLOCK_BYTES = BLOCK_ROWS * WIDTH * 4
MB = 1_000_000
DEFAULT_MB = 256
LARGEST_INLINE = 500 * MB
"""Protobuf ends at 2 GiB, and holds it all in memory several times over."""

Report = Callable[[int, int], None]


class TableError(Exception):
    """A table of that size cannot be made; the message says what can."""


@cache
def block() -> npt.NDArray[np.float32]:
    """FP32 [65536, 32], evenly distributed between -1 and 1; read only."""
    random = np.random.default_rng(1)
    values = random.random((BLOCK_ROWS, WIDTH), dtype=np.float32) * 2 - 1
    values.flags.writeable = False
    return values


def embedded(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Their rows of a table of any size: [...] to [..., 32]."""
    return block()[ids % BLOCK_ROWS]


def blocks_in(megabytes: float) -> int:
    """How many blocks come nearest to that. Raises TableError where it is less than one."""
    blocks = round(megabytes * MB / BLOCK_BYTES) if 0 < megabytes < 1e9 else 0
    largest = (2**31 - 1) // BLOCK_ROWS
    if not 1 <= blocks <= largest:
        raise TableError(
            f"a table of {megabytes:g} MB cannot be made: it has from {BLOCK_BYTES / MB:.1f} MB "
            f"(65,536 rows) to {largest * BLOCK_BYTES / MB:,.0f} MB (INT32 ids)"
        )
    return blocks


def write(
    path: Path, megabytes: float = DEFAULT_MB, external: bool = False, report: Report | None = None
) -> None:
    """The recommender with a table of that size; the .onnx file is there whole or not at all.

    A table above 500 MB, or with `external`, goes to `path` + ".data". `report` is told the
    bytes of it written of all. Raises TableError for the size, OSError where there is no room.
    """
    blocks = blocks_in(megabytes)
    tell = report or (lambda done, total: None)
    part, beside = (path.with_name(f"{path.name}.{end}") for end in ("part", "data"))
    path.unlink(missing_ok=True)
    try:
        if external or blocks * BLOCK_BYTES > LARGEST_INLINE:
            tensor = _beside(beside, blocks, tell)
        else:
            tensor = _tensor(blocks)
            tensor.raw_data = block().tobytes() * blocks
        part.write_bytes(recommender.build(blocks * BLOCK_ROWS, tensor).SerializeToString())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
        raise


def _beside(path: Path, blocks: int, tell: Report) -> onnx.TensorProto:
    """A tensor that says where its values are, in the file that is written here."""
    data, size = block().tobytes(), blocks * BLOCK_BYTES
    with path.open("wb") as file:
        for done in range(1, blocks + 1):
            file.write(data)
            tell(done * BLOCK_BYTES, size)
    tensor = _tensor(blocks)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", path.name), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _tensor(blocks: int) -> onnx.TensorProto:
    dims = (blocks * BLOCK_ROWS, WIDTH)
    return TensorProto(name=TABLE, data_type=TensorProto.FLOAT, dims=dims)
