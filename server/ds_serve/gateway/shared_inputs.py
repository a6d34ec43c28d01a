"""The large inputs of one worker's requests, kept where the worker can read them."""

from __future__ import annotations

import logging
import os

from ds_serve.gateway.regions import Regions
from ds_serve.gateway.requests import InferRequest
from ds_serve.transport.arena import LARGE, Arena, Block
from ds_serve.transport.messages import Attach, InArena, InCuda, InRegion, Where

log = logging.getLogger(__name__)


class SharedInputs:
    """An arena, once the worker can read it, and what lies in it for which request.

    A block is used again only when the worker has answered: one whose client left may still be
    read.
    """

    def __init__(self, regions: Regions) -> None:
        self._regions = regions
        self._arena: Arena | None = None
        self._offered: Arena | None = None
        self._blocks: dict[int, list[Block]] = {}

    def offer(self) -> Attach | None:
        """Makes the arena; the message that offers it. None where the system has none."""
        try:
            self._offered = arena = Arena()
        except (OSError, AttributeError) as error:
            log.debug("no memory to share with workers: %s", error)
            return None
        return Attach(os.getpid(), arena.fd, arena.size)

    def attached(self, ok: bool) -> None:
        """The worker has answered the offer."""
        arena, self._offered = self._offered, None
        if arena is not None:
            arena.close()  # the mappings stay
            self._arena = arena if ok else None

    def room(self, size: int, before: int) -> Block | None:
        """A block for a request's body; what follows its first `before` bytes is aligned."""
        if self._arena is None or size < LARGE:
            return None
        return self._arena.take(size, before)

    def holds(self, block: Block) -> bool:
        """Whether the block is of this worker's arena."""
        return self._arena is not None and self._arena.offset(block.view) is not None

    def place(self, key: int, request: InferRequest) -> list[Where]:
        """Where each large input lies; from now on it refers to its place by number."""
        blocks = [] if request.block is None else [request.block]
        places: list[Where] = []
        for tensor in request.inputs:
            data = tensor.data
            if isinstance(data, int):
                continue
            if len(data) < LARGE and not self._regions.has_cuda:
                continue
            place = self._place(data, blocks)
            if place is not None:
                tensor.data = -1 - len(places)
                places.append(place)
        if blocks:
            self._blocks[key] = blocks
        return places

    def _place(self, data: memoryview, blocks: list[Block]) -> Where | None:
        """None where it must be sent. A block that is taken for it is added to `blocks`."""
        found = self._regions.source(data)
        if isinstance(found, InCuda):
            return found
        if len(data) < LARGE:
            return None
        if found is not None:
            return InRegion(found.key, found.inode, found.offset, len(data))
        if self._arena is None:
            return None
        offset = self._arena.offset(data)
        if offset is None:
            block = self._arena.take(len(data))
            if block is None:
                return None
            block.view[:] = data
            blocks.append(block)
            offset = self._arena.offset(block.view)
            assert offset is not None, "the block is the arena's"
        return InArena(offset, len(data))

    def release(self, key: int) -> None:
        """The worker will not look at that request's inputs any more."""
        for block in self._blocks.pop(key, ()):
            block.free()

    def close(self) -> None:
        """The worker is gone."""
        self.attached(ok=False)
        self._arena = None
        self._blocks.clear()
