"""CUDA shared memory: regions on GPUs that clients register, where there are GPUs."""

from __future__ import annotations

import base64

from ds_engines.cuda.foreign import HANDLE_BYTES
from ds_engines.errors import InvalidRequest, Unsupported
from ds_serve.gateway.regions import Region, Regions
from ds_serve.vllm import devices


def register(regions: Regions, name: str, handle: bytes, device: int, byte_size: int) -> None:
    """Make a region known; workers open it when they first need it.

    Raises Unsupported where there is no GPU, and InvalidRequest for what cannot be a region.
    """
    if not devices.visible() or devices.is_rocm():
        raise Unsupported(
            f"CUDA shared memory region {name!r} cannot be registered: CUDA shared memory is "
            "unavailable, this server uses no GPU; system shared memory works in its place"
        )
    if len(handle) != HANDLE_BYTES or device < 0:
        raise InvalidRequest(
            f"CUDA shared memory region {name!r}: its handle has {len(handle)} bytes on GPU "
            f"{device}; it must have {HANDLE_BYTES}, as cudaIpcGetMemHandle gives them"
        )
    regions.register(Region(name, "", 0, byte_size, handle, device))


def decoded(text: str) -> bytes:
    """The handle out of Base64. Raises InvalidRequest."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise InvalidRequest("raw_handle must hold a handle in Base64 under b64") from None
