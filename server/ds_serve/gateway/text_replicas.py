"""Which of several workers of one text model gets a request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b

SPREAD = 1.25
"""How far above the mean a replica's load may be before its requests go to the next."""


def in_order(prefix: bytes, loads: Mapping[str, int]) -> list[str]:
    """The addresses, best first: the one that has the prefix in its cache, unless too much is
    under way there (rendezvous hashing with bounded loads, Mirrokni et al. 2018).

    `loads`: what each has under way, a request counting 1 or more. Without a prefix the least
    loaded is best.
    """
    if not prefix or len(loads) == 1:
        return sorted(loads, key=loads.__getitem__)
    ranked = sorted(loads, key=lambda address: _weight(prefix, address), reverse=True)
    most = math.ceil(SPREAD * (sum(loads.values()) + 1) / len(loads))
    free = [address for address in ranked if loads[address] < most]
    return free + [address for address in ranked if address not in free]


def _weight(prefix: bytes, address: str) -> bytes:
    return blake2b(prefix, digest_size=8, key=blake2b(address.encode()).digest()[:32]).digest()
