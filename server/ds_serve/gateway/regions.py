"""Regions of POSIX shared memory that clients register, to pass tensors without sending them.

What is registered stands in a folder which all gateways share, one file a region: a registration
made through one gateway holds for all, at once, and outlives each of them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ds_engines.errors import InvalidRequest, NotFound
from ds_serve.transport.arena import SHARED_MEMORY, address
from ds_serve.transport.messages import InCuda, Tensor

_KEY = re.compile(r"/?[^/\0]+")


class Region(msgspec.Struct, frozen=True):
    """`byte_size` bytes from `offset` of the memory object that `shm_open(key)` opens; or, where
    there is a `handle`, of what CUDA opens by it on the GPU `device`.
    """

    name: str
    key: str
    offset: int
    byte_size: int
    handle: bytes = b""
    device: int = 0


class Place(NamedTuple):
    """Where in a region a tensor lies, or shall lie: `size` is what it may take there."""

    region: str
    offset: int
    size: int

    def parameters(self, size: int) -> dict[str, Any]:
        """What the answer says of an output of `size` bytes that was put there."""
        return {
            "shared_memory_region": self.region,
            "shared_memory_offset": self.offset,
            "shared_memory_byte_size": size,
        }


class Source(NamedTuple):
    """Where a worker finds what lies in a region: a memory object, told apart by its inode."""

    key: str
    inode: int
    offset: int


class _Mapped(NamedTuple):
    """A region mapped whole, from the beginning of its memory object."""

    region: Region
    version: int
    fd: int
    inode: int
    memory: mmap.mmap
    view: memoryview
    base: int


def place_of(parameters: Mapping[str, Any], where: str) -> Place | None:
    """What a tensor's parameters say about shared memory. Raises InvalidRequest."""
    region = parameters.get("shared_memory_region")
    if region is None:
        return None
    size: Any = parameters.get("shared_memory_byte_size")
    offset: Any = parameters.get("shared_memory_offset", 0)
    if not isinstance(region, str) or not _is_count(size) or not _is_count(offset):
        raise InvalidRequest(
            f"{where}: shared_memory_region is {region!r}, shared_memory_byte_size {size!r} and "
            f"shared_memory_offset {offset!r}; they must be a name and numbers of bytes"
        )
    return Place(region, offset, size)


class Regions:
    """The regions in `folder`, as this process sees them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mapped: dict[str, _Mapped] = {}
        self.has_cuda = False
        """Whether a region on a GPU has been used."""

    def register(self, region: Region) -> None:
        """Raises InvalidRequest where the memory is not there, or the name is taken."""
        _unmap(_map(region, 0))
        self._folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=True) as file:
            file.write(msgspec.json.encode(region))
            file.flush()
            # What tells one registration from the next under the same name: clocks are too coarse.
            mark = secrets.randbits(60)
            os.utime(file.name, ns=(mark, mark))
            try:
                os.link(file.name, self._file(region.name))
            except FileExistsError:
                raise InvalidRequest(
                    f"shared memory region {region.name!r} is registered already"
                ) from None

    def unregister(self, name: str, *, cuda: bool = False) -> None:
        """Forget one region, known or not; all of that kind where `name` is empty."""
        known = self.status("", cuda=cuda)
        names = [each for each in (known if not name else [name]) if each in known]
        files = [self._file(each) for each in names]
        for file in files:
            file.unlink(missing_ok=True)
        self._forget_gone()

    def status(self, name: str, *, cuda: bool = False) -> dict[str, Region]:
        """The region of that name and kind, or all of the kind. Raises NotFound."""
        if name:
            region = self._read(name)
            if bool(region.handle) is not cuda:
                raise _unknown(name)
            return {name: region}
        regions = []
        for file in sorted(self._folder.glob("[!.]*")):
            try:
                regions.append(_decoded(file.read_bytes()))
            except FileNotFoundError:
                continue
        return {region.name: region for region in regions if bool(region.handle) is cuda}

    def _read(self, name: str) -> Region:
        try:
            return _decoded(self._file(name).read_bytes())
        except FileNotFoundError:
            raise _unknown(name) from None

    def targets(self, places: Mapping[str, Place]) -> list[tuple[str, InCuda]]:
        """Where on GPUs outputs are to be put. Raises InvalidRequest."""
        found = []
        for name, place in places.items():
            if self._find(place.region).region.handle:
                where = self.source(self.view(place))
                assert isinstance(where, InCuda), "it has a handle"
                found.append((name, where))
        return found

    def view(self, place: Place) -> memoryview:
        """The bytes there, to be read or written. Raises InvalidRequest."""
        mapped = self._find(place.region)
        region = mapped.region
        if place.offset + place.size > region.byte_size:
            raise InvalidRequest(
                f"{place.size} bytes at {place.offset} pass the end of shared memory region "
                f"{region.name!r}, which has {region.byte_size} bytes"
            )
        if not region.handle:
            _check_length(region, mapped.fd)
        start = region.offset + place.offset
        return mapped.view[start : start + place.size]

    def write_outputs(self, outputs: Iterable[Tensor], places: Mapping[str, Place]) -> None:
        """Put those outputs that have a place there. Raises InvalidRequest."""
        for tensor in outputs:
            place, data = places.get(tensor.name), tensor.data
            if place is None or isinstance(data, int):
                continue
            if len(data) > place.size:
                raise InvalidRequest(
                    f"output {tensor.name!r} has {len(data)} bytes; its "
                    f"shared_memory_byte_size is {place.size}"
                )
            view = self.view(place)
            if not view.readonly:  # else the worker has put it on the GPU
                view[: len(data)] = data

    def source(self, data: memoryview) -> Source | InCuda | None:
        """Where a worker finds `data`; None where it lies in no region."""
        for mapped in self._mapped.values():
            if data.obj is mapped.memory:
                offset = address(data) - mapped.base
                region = mapped.region
                if region.handle:
                    size, mark = len(data), mapped.version
                    return InCuda(region.handle, region.device, offset, size, mark)
                return Source(mapped.region.key, mapped.inode, offset)
        return None

    def _find(self, name: str) -> _Mapped:
        """The region, mapped anew where it was registered anew."""
        known = self._mapped.get(name)
        try:
            version = self._file(name).stat().st_mtime_ns
        except FileNotFoundError:
            if known is not None:
                _unmap(self._mapped.pop(name))
            raise _unknown(name, InvalidRequest) from None
        if known is not None and known.version == version:
            return known
        region = self._read(name)
        self.has_cuda |= bool(region.handle)
        if known is not None:
            _unmap(self._mapped.pop(name))
        self._forget_gone()
        mapped = self._mapped[name] = _map(region, version)
        return mapped

    def _forget_gone(self) -> None:
        """What was unregistered, maybe through another gateway, would keep its memory."""
        for name in [name for name in self._mapped if not self._file(name).exists()]:
            _unmap(self._mapped.pop(name))

    def _file(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode()).hexdigest()


def _map(region: Region, version: int) -> _Mapped:
    """Raises InvalidRequest where the memory object is not there, or too short."""
    if not region.name or not region.byte_size or region.offset < 0 or region.byte_size < 0:
        raise InvalidRequest(
            f"shared memory region {region.name!r}: it needs a name and a size above 0, "
            f"not {region.byte_size} bytes at {region.offset}"
        )
    if region.handle:
        return _stand_in(region, version)
    if not _KEY.fullmatch(region.key) or region.key.strip("/") in (".", ".."):
        raise InvalidRequest(
            f"shared memory region {region.name!r}: key {region.key!r} is no name of a memory "
            "object: one slash, then no other"
        )
    try:
        fd = os.open(SHARED_MEMORY / region.key.lstrip("/"), os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(
            f"shared memory region {region.name!r}: {region.key!r} cannot be opened: "
            f"{error.strerror}"
        ) from None
    try:
        _check_length(region, fd)
        memory = mmap.mmap(fd, region.offset + region.byte_size)
    except BaseException:
        os.close(fd)
        raise
    view = memoryview(memory)
    return _Mapped(region, version, fd, os.fstat(fd).st_ino, memory, view, address(view))


def _stand_in(region: Region, version: int) -> _Mapped:
    """As many addresses, with no memory behind them, for what only workers can see: views of them
    have the right size, and tell where it is.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, region.byte_size, flags=flags, prot=mmap.PROT_READ)
    view = memoryview(memory)
    return _Mapped(region, version, -1, 0, memory, view, address(view))


def _unmap(mapped: _Mapped) -> None:
    """The mapping itself goes with the last request that looks at it."""
    if mapped.fd >= 0:
        os.close(mapped.fd)


def _check_length(region: Region, fd: int) -> None:
    """Reading beyond the end of a memory object would kill the process."""
    length = os.fstat(fd).st_size
    if region.offset + region.byte_size > length:
        raise InvalidRequest(
            f"shared memory region {region.name!r} is {region.byte_size} bytes at {region.offset} "
            f"of {region.key!r}, which has {length} bytes"
        )


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _decoded(text: bytes) -> Region:
    return msgspec.json.decode(text, type=Region)


def _unknown(
    name: str, kind: type[InvalidRequest] | type[NotFound] = NotFound
) -> InvalidRequest | NotFound:
    return kind(f"there is no shared memory region {name!r}: it must be registered first")
