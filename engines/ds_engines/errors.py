"""Everything that can go wrong, in terms of the domain; front-ends map these to a status.

ServeError
├── InvalidRequest       the client sent something wrong; the message names it
│   └── TooLarge         a body or tensor above the limit
├── NotFound             no such model, version or resource
├── Unsupported          a feature that this engine or build does not offer
├── Unauthenticated      the key is missing or wrong
├── Forbidden            the key does not allow this
├── Overloaded           a bounded queue is full; waiting helps
│   └── RateLimited      a key's, or a text model's, admission limit
├── Unavailable          the model is loading, restarting or failed
│   └── Lost             its worker went away with the request, which may have run
├── DeadlineExceeded     the request's deadline passed before an answer
├── Cancelled            the client went away
├── EngineFailure        the engine failed while running a batch
│   └── OutOfMemory      the device has no memory left for it; a smaller batch may fit
├── ConfigError          a flag or configuration field is wrong; names field and file
└── LoadError            a model file cannot be loaded; names the file
"""

from __future__ import annotations


class ServeError(Exception):
    """Base of the hierarchy. `str(error)` is fit for a client to read.

    `retry_after` is in seconds, None where waiting does not help.
    """

    retry_after: float | None = None

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """The class's name: what travels between processes."""
        return type(self).__name__


class InvalidRequest(ServeError):
    """The client sent something wrong."""


class TooLarge(InvalidRequest):
    """A body or tensor above the limit."""


class NotFound(ServeError):
    """No such model, version or resource."""


class Unsupported(ServeError):
    """A feature that this engine or build does not offer."""


class Unauthenticated(ServeError):
    """The key is missing or wrong."""


class Forbidden(ServeError):
    """The key does not allow this."""


class Overloaded(ServeError):
    """A bounded queue is full."""

    retry_after: float | None = 1.0


class RateLimited(Overloaded):
    """A key's, or a text model's, admission limit is reached."""


class Unavailable(ServeError):
    """The model is loading, restarting or has failed."""

    retry_after: float | None = 1.0


class Lost(Unavailable):
    """The worker went away with the request, which may have run: only the client can tell whether
    to send it again.
    """


class DeadlineExceeded(ServeError):
    """The deadline passed before an answer."""


class Cancelled(ServeError):
    """The client went away."""


class EngineFailure(ServeError):
    """The engine failed while running a batch. `fatal`: it can run no other, so that its process
    has to end and another to begin.
    """

    fatal: bool = False


class OutOfMemory(EngineFailure):
    """The device has no memory left for a batch: a smaller one may fit, or the same one later."""

    retry_after: float | None = 1.0


class ConfigError(ServeError):
    """A flag or configuration field is wrong."""


class LoadError(ServeError):
    """A model file cannot be loaded."""


def _tree(root: type[ServeError]) -> dict[str, type[ServeError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


KINDS = _tree(ServeError)


def from_kind(kind: str, message: str, retry_after: float | None = None) -> ServeError:
    """The error that `kind` names, rebuilt on the other side of a process boundary."""
    return KINDS.get(kind, EngineFailure)(message, retry_after=retry_after)
