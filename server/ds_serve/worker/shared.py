"""Where a worker finds inputs that were not sent: in gateways' arenas and in clients' regions."""

from __future__ import annotations

import logging
import mmap
import os
from collections import OrderedDict
from typing import cast

from ds_engines.errors import InvalidRequest
from ds_serve.transport.arena import SHARED_MEMORY, Attached
from ds_serve.transport.link import Link
from ds_serve.transport.messages import Attach, InCuda, Infer, InRegion
from ds_serve.worker.device_memory import DeviceMemory, OnDevice

log = logging.getLogger(__name__)

MOST_REGIONS = 64
"""Memory objects that stay mapped; those used longest ago go first."""


class SharedMemory:
    """What is mapped, for each gateway and each memory object."""

    def __init__(self) -> None:
        self._arenas: dict[Link, Attached] = {}
        self._cuda = DeviceMemory()
        self._regions: OrderedDict[tuple[str, int], memoryview] = OrderedDict()

    def attach(self, gateway: Link, offer: Attach) -> bool:
        """Whether the gateway's arena can be read."""
        try:
            self._arenas[gateway] = Attached(offer.pid, offer.fd, offer.size)
        except (OSError, ValueError) as error:
            log.info("large tensors travel through the socket: %s", error)
            return False
        return True

    def forget(self, gateway: Link) -> None:
        self._arenas.pop(gateway, None)

    def find_inputs(self, gateway: Link, request: Infer) -> None:
        """Point the inputs that lie elsewhere to where they lie. Raises InvalidRequest."""
        for tensor in request.inputs:
            if isinstance(tensor.data, int):
                place = request.places[-1 - tensor.data]
                if isinstance(place, InCuda):
                    # From here on it is asked for by its shape, as `arrays_of` does.
                    tensor.data = cast(memoryview, self._cuda.find(place))
                elif isinstance(place, InRegion):
                    tensor.data = self._read(place)
                else:
                    tensor.data = self._arenas[gateway].read(place.offset, place.size)

    def targets(self, request: Infer) -> list[tuple[str, OnDevice]]:
        """Where its outputs are to be put. Raises InvalidRequest."""
        return [(name, self._cuda.find(place)) for name, place in request.targets]

    def _read(self, place: InRegion) -> memoryview:
        view = self._regions.get((place.key, place.inode))
        if view is None or len(view) < place.offset + place.size:
            view = _mapped(place)
            self._regions[place.key, place.inode] = view
            if len(self._regions) > MOST_REGIONS:
                self._regions.popitem(last=False)
        self._regions.move_to_end((place.key, place.inode))
        return view[place.offset : place.offset + place.size]


def _mapped(place: InRegion) -> memoryview:
    """The whole memory object."""
    try:
        fd = os.open(SHARED_MEMORY / place.key.lstrip("/"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(f"{place.key!r} cannot be opened: {error.strerror}") from None
    try:
        about = os.fstat(fd)
        if about.st_ino != place.inode or about.st_size < place.offset + place.size:
            raise InvalidRequest(f"{place.key!r} is another memory object than was registered")
        return memoryview(mmap.mmap(fd, about.st_size, prot=mmap.PROT_READ))
    finally:
        os.close(fd)
