"""What an operator says about safety, for both front-ends."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ds_serve.security.guard import Guard, KeyGuard, OpenGuard
from ds_serve.security.key_file import KeyFile
from ds_serve.security.tls import TLS


class Pace(msgspec.Struct, frozen=True):
    """How slow an HTTP client may be. Times are in seconds, sizes in bytes."""

    first_request: float = 75.0
    """From the connection to the first byte of a request."""
    headers: float = 10.0
    """From the first byte of a request to the end of its headers."""
    body_pause: float = 30.0
    """Within which some of a body must come: `body_bytes`, if so many are left."""
    body_bytes: int = 1024
    answer_pause: float = 60.0
    """Within which a client must take some of what waits to be sent."""
    header_bytes: int = 64 * 1024
    """Of a request's line and headers; one read of the socket more may pass."""
    look_every: float = 5.0


class Security(msgspec.Struct, frozen=True):
    """`keys` is the path of the file of keys; "" lets everybody in. `open_metrics`: the metrics
    need no key. `open_control`: without a file of keys, everybody may load models.
    """

    keys: str = ""
    open_metrics: bool = False
    open_control: bool = False
    tls: TLS = TLS()
    pace: Pace = Pace()

    def check(self) -> None:
        """Raises ConfigError naming the file, and the line, of what is wrong."""
        if self.keys:
            KeyFile(Path(self.keys))
        self.tls.check()

    def guard(self, folder: Path) -> Guard:
        """Once in each gateway process. `folder`: the run folder, which they share. Raises
        ConfigError.
        """
        return KeyGuard(Path(self.keys), folder) if self.keys else OpenGuard(self.open_control)
