"""A load test as data: a TOML file, changed by the command line."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import msgspec

from loadtests.load import thresholds
from loadtests.load.shapes import Shape

FOLDER = Path(__file__).resolve().parent.parent / "scenarios"
Protocol = Literal["http", "grpc", "grpc-stream", "chat"]
Value = bool | int | float | str
Above0 = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]


class ScenarioError(Exception):
    """A load test that cannot be run as it was asked for."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is sent, how much of it, for how long, and what must come out.

    `requests` names a module of loadtests.scenarios. `rate` is in requests a second at full load,
    shared among `users`; without it each user asks again as soon as it has its answer. `low` is
    the load before a step, around a spike, and of a soak: requests a second, or users where there
    is no rate. `duration` and `warmup` (not counted, part of the duration) and `timeout` (of one
    request) are in seconds. One answer in `check` is checked. `require` fails a run, `target` is
    only compared; the keys are those of loadtests.load.thresholds.
    """

    about: str
    requests: str
    protocol: Protocol
    shape: Shape = "constant"
    users: Count
    rate: Above0 | None = None
    low: Above0 | None = None
    duration: Above0 | None = None
    warmup: Annotated[float, msgspec.Meta(ge=0)] | None = None
    timeout: Above0 = 30.0
    check: Count = 20
    model: str = ""
    serve: tuple[str, ...] = ()
    options: dict[str, Value] = {}
    require: dict[str, float] = {}
    target: dict[str, float] = {}

    @property
    def peak(self) -> float:
        """Full load: requests a second, or users."""
        return self.rate or float(self.users)

    @property
    def low_share(self) -> float:
        """The low load as a share of the full one."""
        usual = 0.5 if self.shape == "soak" else 1 / 6
        return usual if self.low is None else self.low / self.peak

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.duration or (1800.0 if self.shape == "soak" else 30.0)

    @property
    def uncounted(self) -> float:
        """Seconds at the start that do not count."""
        return min(5.0, self.seconds / 10) if self.warmup is None else self.warmup


def names() -> list[str]:
    """The scenarios that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> Scenario:
    """The scenario of that name, or in the file of that path. Raises ScenarioError."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        text = path.read_bytes()
    except OSError:
        raise ScenarioError(
            f"there is no scenario {name!r}; there are {', '.join(names())}, "
            "or give the path of a .toml file"
        ) from None
    try:
        return checked(msgspec.toml.decode(text, type=Scenario))
    except (msgspec.DecodeError, ScenarioError) as error:
        raise ScenarioError(f"{path}: {error}") from None


def changed(scenario: Scenario, given: Mapping[str, Any]) -> Scenario:
    """With what the command line gives in place of what the file says. Raises ScenarioError."""
    fields = msgspec.to_builtins(scenario)
    for name in ("require", "target"):
        for threshold, value in given.get(name, {}).items():
            if isinstance(value, str | bool):
                raise ScenarioError(f"{threshold} = {value!r} is no number")
    for name, value in given.items():
        fields[name] = fields[name] | value if isinstance(value, dict) else value
    try:
        return checked(msgspec.convert(fields, Scenario))
    except msgspec.ValidationError as error:
        raise ScenarioError(str(error)) from None


def checked(scenario: Scenario) -> Scenario:
    """The scenario itself. Raises ScenarioError where its parts do not go together."""
    for name in {**scenario.require, **scenario.target}:
        if name not in thresholds.NAMES:
            known = ", ".join(thresholds.NAMES)
            raise ScenarioError(f"there is no threshold {name!r}; there are {known}")
    if scenario.low_share > 1:
        raise ScenarioError(f"low = {scenario.low:g} is above the full load, {scenario.peak:g}")
    if scenario.uncounted >= scenario.seconds:
        raise ScenarioError(
            f"warmup = {scenario.uncounted:g} s leaves nothing of duration = {scenario.seconds:g} s"
        )
    is_text = hasattr(module(scenario.requests), "prompts")
    if is_text != (scenario.protocol == "chat"):
        fitting = "chat" if is_text else "http, grpc or grpc-stream"
        raise ScenarioError(
            f"protocol = {scenario.protocol!r} does not fit requests = {scenario.requests!r}; "
            f"{fitting} does"
        )
    return scenario


def module(name: str) -> ModuleType:
    """The module of loadtests.scenarios that makes the requests. Raises ScenarioError."""
    if not re.fullmatch(r"[a-z]\w*", name) or not find_spec(f"loadtests.scenarios.{name}"):
        there = ", ".join(sorted(path.stem for path in FOLDER.glob("[a-z]*.py")))
        raise ScenarioError(f"there is no requests = {name!r}; there are {there}")
    try:
        return importlib.import_module(f"loadtests.scenarios.{name}")
    except ModuleNotFoundError as error:
        raise ScenarioError(
            f"requests = {name!r} needs the package {error.name}, which is not installed"
        ) from None


def pairs(texts: Iterable[str]) -> dict[str, Value]:
    """NAME=VALUE as names to values, numbers where they are. Raises ScenarioError."""
    found: dict[str, Value] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ScenarioError(f"{text!r} is not of the form NAME=VALUE")
        found[name] = _value(value)
    return found


def _value(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)


def seconds(text: str) -> float:
    """`90`, `90s`, `30m` or `2h` in seconds. Raises ScenarioError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found:
        raise ScenarioError(f"{text!r} is no duration; 90, 90s, 30m and 2h are")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
