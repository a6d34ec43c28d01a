"""Memory shared between a gateway and a worker: blocks never overlap, and come back whole."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_serve.transport.arena import ALIGNMENT, Arena, Attached

SIZE = 1 << 16

sizes = st.tuples(st.integers(1, 9000), st.integers(0, 200))
steps = st.lists(st.one_of(sizes, st.integers(0, 30)), max_size=60)


@given(steps)
def test_blocks_in_use_never_overlap(steps: list[tuple[int, int] | int]) -> None:
    """A pair takes a block of that size and lead; a number gives back the block of that place."""
    arena = Arena(SIZE)
    used = []
    for mark, step in enumerate(steps):
        if isinstance(step, tuple):
            size, before = step
            block = arena.take(size, min(before, size))
            if block is not None:
                assert len(block.view) == size
                assert _start(arena, block.view[min(before, size) :], size) % ALIGNMENT == 0
                block.view[:] = bytes([mark % 251]) * size
                used.append((block, bytes([mark % 251]) * size))
        elif used:
            block, wrote = used.pop(step % len(used))
            assert block.view == wrote
            block.free()
    for block, wrote in used:
        assert block.view == wrote
        block.free()
    whole = arena.take(SIZE)
    assert whole is not None, "what was given back is one piece again"
    arena.close()


def _start(arena: Arena, data: memoryview, size: int) -> int:
    if not len(data):
        return 0
    offset = arena.offset(data)
    assert offset is not None
    return offset


def test_a_block_that_does_not_fit_is_none() -> None:
    arena = Arena(SIZE)
    assert arena.take(SIZE + 1) is None
    first = arena.take(SIZE - ALIGNMENT)
    assert first is not None
    assert arena.take(ALIGNMENT + 1) is None
    assert arena.take(ALIGNMENT) is not None
    arena.close()


def test_the_other_side_reads_what_was_written() -> None:
    arena = Arena(SIZE)
    other = Attached(os.getpid(), arena.fd, SIZE)
    arena.close()
    block = arena.take(1000, before=3)
    assert block is not None
    block.view[3:] = np.arange(997).astype(np.uint8).tobytes()
    offset = arena.offset(block.view[3:])
    assert offset is not None
    assert other.read(offset, 997) == block.view[3:]
    with pytest.raises(TypeError):
        other.read(offset, 1)[0] = 1


def test_reading_beyond_the_end_is_refused() -> None:
    arena = Arena(SIZE)
    other = Attached(os.getpid(), arena.fd, SIZE)
    for offset, size in ((SIZE, 1), (SIZE - 1, 2), (-1, 1)):
        with pytest.raises(IndexError, match="of an arena"):
            other.read(offset, size)
    arena.close()


def test_memory_that_cannot_be_had_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="No such file"):
        Attached(os.getpid(), 9999, SIZE)


def test_memory_of_others_has_no_offset() -> None:
    arena = Arena(SIZE)
    assert arena.offset(memoryview(bytes(100))) is None
    arena.close()
