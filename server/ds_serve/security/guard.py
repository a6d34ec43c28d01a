"""The one check that every request passes, whatever carries it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ds_engines.errors import Forbidden, Unauthenticated
from ds_serve.security.key_file import KeyFile
from ds_serve.security.keys import Key, Keys
from ds_serve.security.ledger import Ledger

SCHEME = b"bearer "
LEDGER = "limits"
"""The ledger's file in the run folder."""


class Kind(Enum):
    """What a request is about."""

    INFER = "infer"
    """Runs a model; counts as under way until its caller is closed."""
    READ = "read"
    """Asks about the server or a model."""
    MEMORY = "memory"
    """Has the server read and write shared memory, in which others' tensors may lie too."""
    ADMIN = "admin"
    """Changes how the server works."""
    CONTROL = "control"
    """Changes which models there are."""


class Caller:
    """Whoever sent a request that was let in. Close it, or leave its block, when the request has
    ended.

    `name` is the key's; "" without keys. Cached answers and sequences are kept apart by it.
    """

    __slots__ = ("_key", "_ledger", "_slot", "name")

    def __init__(
        self, key: Key | None = None, ledger: Ledger | None = None, slot: int | None = None
    ) -> None:
        self.name = "" if key is None else key.name
        self._key = key
        self._ledger = ledger
        self._slot = slot

    @property
    def priority(self) -> int:
        """The class of its text requests; lower is earlier."""
        return 0 if self._key is None else self._key.priority

    def allows(self, model: str) -> bool:
        """Whether a list may show the model."""
        return self._key is None or self._key.allows(model)

    @property
    def shares_memory(self) -> bool:
        """Whether its requests may have tensors in registered regions, which anybody's may be."""
        return self._key is None or self._key.admin or self._key.shared_memory

    def require(self, model: str) -> None:
        """For a request that says only in its body which model it is for. Raises Forbidden."""
        if self._key is not None and not self._key.allows(model):
            raise Forbidden(f"key {self.name!r} does not allow model {model!r}")

    def close(self) -> None:
        """Nothing happens the second time."""
        slot, self._slot = self._slot, None
        if slot is not None and self._ledger is not None:
            self._ledger.leave(slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


ANYBODY = Caller()
"""Where nobody is asked for a key."""

STRANGER = Caller(Key("", b"", models=()))
"""Who was not asked for one, where others are: no model is shown to it."""


class Identity(Protocol):
    """Who is at the other end of a stream; each of its requests is checked by itself."""

    def enter(self, model: str, kind: Kind) -> Caller:
        """Raises Unauthenticated where the key has been withdrawn, Forbidden, RateLimited."""


class Guard(Protocol):
    """`authorization` is the header of that name, None where there is none. `stranger` is whoever
    asks for what needs no key.
    """

    stranger: Caller

    def check(self, authorization: bytes | str | None, model: str, kind: Kind) -> Caller:
        """`model` is "" where the request is about none. Raises Unauthenticated, Forbidden and
        RateLimited.
        """

    def identify(self, authorization: bytes | str | None) -> Identity:
        """Raises Unauthenticated."""


class KeyGuard:
    """Lets in who has a key."""

    stranger = STRANGER

    def __init__(self, file: Path, folder: Path) -> None:
        """`folder` is the server's run folder, which its gateways share. Raises ConfigError."""
        self._file = KeyFile(file)
        self._ledger = Ledger(folder / LEDGER)

    def check(self, authorization: bytes | str | None, model: str, kind: Kind) -> Caller:
        return self.enter(_find(self._file.keys, authorization), model, kind)

    def identify(self, authorization: bytes | str | None) -> Identity:
        return _KeyIdentity(self, _find(self._file.keys, authorization).digest)

    def again(self, digest: bytes) -> Key:
        """The key as it is now. Raises Unauthenticated."""
        key = self._file.keys.of_digest(digest)
        if key is None:
            raise Unauthenticated("the key is not valid any more")
        return key

    def enter(self, key: Key, model: str, kind: Kind) -> Caller:
        if kind in (Kind.ADMIN, Kind.CONTROL) and not key.admin:
            raise Forbidden(f"key {key.name!r} is no administrator's")
        caller = Caller(key)
        if kind is Kind.MEMORY and not caller.shares_memory:
            raise Forbidden(f"key {key.name!r} does not allow shared memory")
        if model:
            caller.require(model)
        if not key.limited:
            return caller
        if kind is Kind.INFER:
            return Caller(key, self._ledger, self._ledger.enter(key))
        self._ledger.spend(key)
        return caller


class _KeyIdentity:
    def __init__(self, guard: KeyGuard, digest: bytes) -> None:
        self._guard = guard
        self._digest = digest

    def enter(self, model: str, kind: Kind) -> Caller:
        return self._guard.enter(self._guard.again(self._digest), model, kind)


class OpenGuard:
    """Without keys everybody is let in, and may change which models there are where `control`
    says so.
    """

    stranger = ANYBODY

    def __init__(self, control: bool = False) -> None:
        self._control = control

    def check(self, authorization: bytes | str | None, model: str, kind: Kind) -> Caller:
        return self.enter(model, kind)

    def identify(self, authorization: bytes | str | None) -> Identity:
        return self

    def enter(self, model: str, kind: Kind) -> Caller:
        if kind is Kind.CONTROL and not self._control:
            raise Forbidden(
                "loading and unloading models is for administrators' keys, and the server has no "
                "keys: start it with --api-keys FILE, or with --open-control to let everybody"
            )
        return ANYBODY


EVERYBODY = OpenGuard()
"""For what is built without keys."""


def _find(keys: Keys, authorization: bytes | str | None) -> Key:
    if not authorization:
        raise Unauthenticated("a key is needed: send it as `Authorization: Bearer KEY`")
    given = authorization.encode() if isinstance(authorization, str) else authorization
    if given[: len(SCHEME)].lower() != SCHEME:
        raise Unauthenticated("the key must be sent as `Authorization: Bearer KEY`")
    key = keys.find(given[len(SCHEME) :].strip())
    if key is None:
        raise Unauthenticated("the key is not known to this server")
    return key
