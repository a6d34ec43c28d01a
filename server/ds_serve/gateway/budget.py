"""A bound on the bytes of requests that a gateway holds at one time."""

from __future__ import annotations

from ds_engines.errors import Overloaded, TooLarge


class Budget:
    """`take` what a request brings, `give` it back when it is answered. In bytes."""

    def __init__(self, per_request: int, together: int) -> None:
        self._per_request = per_request
        self._together = together
        self._taken = 0

    def check(self, size: int) -> None:
        """Raises TooLarge where one request of that size is never taken."""
        if size > self._per_request:
            raise TooLarge(
                f"the request's body has {size:,} bytes or more; the limit is "
                f"{self._per_request:,} (--max-request-bytes)"
            )

    def take(self, size: int) -> None:
        """Raises Overloaded where the requests in flight leave no room."""
        if self._taken + size > self._together:
            raise Overloaded(
                f"requests in flight hold {self._taken:,} bytes; {size:,} more would pass the "
                f"limit of {self._together:,} (--max-bytes-in-flight)"
            )
        self._taken += size

    def give(self, size: int) -> None:
        self._taken -= size
