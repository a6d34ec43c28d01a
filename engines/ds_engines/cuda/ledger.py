"""Whether a model fits on a device, reckoned before it is loaded."""

from __future__ import annotations

from ds_engines.errors import LoadError

MB = 1_000_000

RESERVE = 256 * MB
"""Left free: CUDA loads its kernels when they are first used, and libraries keep scratch memory."""


class DoesNotFit(LoadError):
    """A device has too little memory free for a model."""


class Ledger:
    """What a model needs on `device`, of which `free` bytes are free."""

    def __init__(self, model: str, device: str, free: int, reserve: int = RESERVE) -> None:
        self._model, self._device = model, device
        self._free, self._reserve = free, reserve
        self.parts: dict[str, int] = {}

    @property
    def needed(self) -> int:
        """Bytes, of all parts together."""
        return sum(self.parts.values())

    def need(self, what: str, size: int) -> None:
        """Count `size` bytes more."""
        self.parts[what] = self.parts.get(what, 0) + size

    def check(self) -> None:
        """Raises DoesNotFit with the numbers where they do not fit."""
        if self.needed + self._reserve <= self._free:
            return
        parts = ", ".join(f"{what} {_shown(size)}" for what, size in self.parts.items())
        raise DoesNotFit(
            f"model {self._model!r} does not fit on {self._device}: it needs {_shown(self.needed)} "
            f"({parts}) beside a reserve of {_shown(self._reserve)}, and {_shown(self._free)} are "
            "free; lower max_batch_size or instance_group.count, or take another GPU by --device"
        )


def _shown(size: int) -> str:
    return f"{size / MB:,.0f} MB"
