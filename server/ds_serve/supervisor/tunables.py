"""Settings that clients may change while the server runs: how it logs and what it traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ds_engines.errors import InvalidRequest, NotFound
from ds_serve.logs import FORMATS, LogSettings
from ds_serve.tracing import OFF, TIMESTAMPS, TraceSettings
from ds_serve.transport.messages import Tuning

DEFAULT = "default"
"""The log format that the server was started with."""

NAMES = tuple(name for name in TraceSettings.__struct_fields__ if name != "otlp_endpoint")
"""Trace settings that clients know."""

LOWEST = {"trace_rate": 1, "trace_count": -1, "log_frequency": 0}
"""Trace settings that are numbers, and the lowest value of each."""

Changes = Mapping[str, Any]


class Tunables:
    """`logs` and `tracing` are how the server was started. Changes are given to `broadcast`.

    `gateways`: how many share `trace_count` among them. `knows` tells whether a model is served.
    """

    def __init__(
        self,
        logs: LogSettings,
        tracing: TraceSettings,
        gateways: int,
        knows: Callable[[str], bool],
        broadcast: Callable[[Tuning], None],
    ) -> None:
        self.logs = logs
        """As they are now."""
        self._default_logs = logs
        self._default_tracing = tracing
        self._changes: dict[str, dict[str, Any]] = {"": {}}
        self._gateways = gateways
        self._knows = knows
        self._broadcast = broadcast

    def tuning(self) -> Tuning:
        """What all children are told."""
        models = {name: self._tracing(name) for name in self._changes if name}
        return Tuning(
            self.logs,
            self._shared(self._tracing("")),
            {name: self._shared(settings) for name, settings in models.items()},
        )

    def log(self, changes: Changes) -> dict[str, bool | int | str]:
        """All log settings after these changes; None brings back what the server began with.

        Raises InvalidRequest for a setting that is not known, or whose value cannot be.
        """
        wanted = {name: self._log_value(name, value) for name, value in changes.items()}
        if wanted:
            self.logs = msgspec.structs.replace(self.logs, **wanted)
            self._broadcast(self.tuning())
        values = msgspec.to_builtins(self.logs)
        if values["log_format"] == self._default_logs.log_format:
            values["log_format"] = DEFAULT
        return {"log_file": "", **values}

    def trace(self, model: str, changes: Changes) -> dict[str, list[str]]:
        """All trace settings of a model (of all others where it is "") after these changes.

        None brings back the common setting, or what the server began with. Raises NotFound for
        an unknown model, InvalidRequest for a setting that is not known, or whose value cannot be.
        """
        if model and not self._knows(model):
            raise NotFound(f"there is no model {model!r} to trace")
        wanted = {name: _trace_value(name, value) for name, value in changes.items()}
        if wanted:
            own = self._changes.get(model, {}) | wanted
            self._changes[model] = {key: value for key, value in own.items() if value is not None}
            if model and not self._changes[model]:
                del self._changes[model]
            self._broadcast(self.tuning())
        values = msgspec.to_builtins(self._tracing(model))
        mode = "opentelemetry" if values.pop("otlp_endpoint") else "triton"
        return {name: [str(value)] for name, value in values.items()} | {"trace_mode": [mode]}

    def _tracing(self, model: str) -> TraceSettings:
        changed = self._changes[""] | self._changes.get(model, {})
        return msgspec.structs.replace(self._default_tracing, **changed)

    def _shared(self, settings: TraceSettings) -> TraceSettings:
        """Each gateway's part of it."""
        count = settings.trace_count
        part = -(-count // self._gateways) if count > 0 else count
        return msgspec.structs.replace(settings, trace_count=part)

    def _log_value(self, name: str, value: Any) -> Any:
        if name == "log_file":
            raise InvalidRequest(
                "log file location can not be updated through network protocol: logs go to the "
                "server's standard error"
            )
        if name not in LogSettings.__struct_fields__:
            known = ", ".join(LogSettings.__struct_fields__)
            raise InvalidRequest(f"there is no log setting {name!r}; there are: {known}")
        default = getattr(self._default_logs, name)
        if value is None or (name == "log_format" and value == DEFAULT):
            return default
        if type(value) is not type(default) or (name == "log_verbose_level" and value < 0):
            right = {bool: "true or false", int: "0 or more", str: "a string"}[type(default)]
            raise InvalidRequest(f"the log setting {name} is {value!r}; it must be {right}")
        formats = (DEFAULT, *FORMATS)
        if name == "log_format" and value not in formats:
            raise InvalidRequest(f"log_format is {value!r}; it must be one of {', '.join(formats)}")
        return value


def _trace_value(name: str, given: list[str] | None) -> object:
    if name in ("trace_file", "trace_mode"):
        raise InvalidRequest(
            f"{name}: trace file location can not be updated through network protocol"
            if name == "trace_file"
            else "trace_mode can not be changed while the server runs"
        )
    if name not in NAMES:
        known = ", ".join(NAMES)
        raise InvalidRequest(f"there is no trace setting {name!r}; there are: {known}")
    if given is None:
        return None
    if name == "trace_level":
        return _level(given)
    try:
        (text,) = given
        value = int(text)
    except ValueError:
        raise InvalidRequest(f"{name} is {given!r}; it must be one whole number") from None
    if value < LOWEST[name]:
        raise InvalidRequest(f"{name} is {value}; it must be {LOWEST[name]} or more")
    return value


def _level(given: list[str]) -> str:
    for level in given:
        if level not in (OFF, TIMESTAMPS):
            raise InvalidRequest(f"trace_level {level!r} is not supported: OFF and TIMESTAMPS are")
    return OFF if OFF in given or not given else TIMESTAMPS
