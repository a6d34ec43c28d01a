"""When a model passes a request on to another: `--escalate MODEL=OTHER?KEY=VALUE&…`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal
from urllib.parse import parse_qsl

import msgspec

from ds_engines.errors import ConfigError

TENSOR_SECONDS, TEXT_SECONDS = 2.0, 30.0
"""How long is waited for the other model where the rule does not say."""

FORM = "MODEL=OTHER?below=0.9 for classifiers, MODEL=OTHER?tokens=1000 for text"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`to`: the other model. For classifiers: `below` which confidence it is asked, and the
    `output` that tells it; "" for the only one with numbers, which are the `scores` that it names,
    or are taken for probabilities where they are like some. For text: for prompts of more than
    about `tokens` tokens, and after an answer whose end has one of the reasons in `finish` (with
    commas between) or whose text has the regular expression `refusal`. `within`: seconds that
    the other has; 0 for the usual.
    """

    to: str
    below: float = 0.0
    output: str = ""
    scores: Literal["", "probabilities", "logits"] = ""
    tokens: int = 0
    finish: str = ""
    refusal: str = ""
    within: float = 0.0

    @property
    def of_text(self) -> bool:
        return bool(self.tokens or self.judges)

    @property
    def judges(self) -> bool:
        """Whether answers of text are looked at."""
        return bool(self.finish or self.refusal)

    @property
    def seconds(self) -> float:
        return self.within or (TEXT_SECONDS if self.of_text else TENSOR_SECONDS)


KEYS = tuple(name for name in Rule.__struct_fields__ if name != "to")


def rules(given: Sequence[str]) -> dict[str, Rule]:
    """By the name of the model that asks another. Raises ConfigError."""
    found: dict[str, Rule] = {}
    for argument in given:
        name, rule = _parsed(argument)
        if name in found:
            raise _wrong(argument, f"{name} escalates to {found[name].to} already")
        found[name] = rule
    for name in found:
        _require_end(name, found)
    return found


def check(given: Sequence[str], tasks: Mapping[str, str], *, open_ended: bool) -> None:
    """Raises ConfigError where a rule does not fit the models; `tasks`: tensor or text, by their
    names. `open_ended`: there may be others.
    """
    for name, rule in rules(given).items():
        argument = next(each for each in given if each.startswith(f"{name}="))
        for each in (name, rule.to):
            task = tasks.get(each)
            if task is None and not open_ended:
                known = ", ".join(sorted(tasks)) or "none"
                raise _wrong(argument, f"there is no model {each!r}; there are: {known}")
            if task is not None and (task == "text") != rule.of_text:
                wanted = "tokens, finish or refusal" if task == "text" else "below"
                raise _wrong(argument, f"{each} is a {task} model, whose rule says {wanted}")


def _parsed(argument: str) -> tuple[str, Rule]:
    name, equals, rest = argument.partition("=")
    to, mark, query = rest.partition("?")
    if not (name and equals and to and mark):
        raise _wrong(argument, f"it must be {FORM}")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise _wrong(argument, "after '?' stand settings as KEY=VALUE, joined by '&'") from None
    if unknown := [key for key, _ in pairs if key not in KEYS]:
        raise _wrong(argument, f"no setting is called {unknown[0]!r}; of {', '.join(KEYS)}")
    try:
        rule = msgspec.convert({**dict(pairs), "to": to}, Rule, strict=False)
    except msgspec.ValidationError as error:
        raise _wrong(argument, str(error)) from None
    _check_values(argument, rule)
    return name, rule


def _check_values(argument: str, rule: Rule) -> None:
    if rule.of_text == bool(rule.below or rule.output or rule.scores):
        raise _wrong(argument, f"say when the other is asked: {FORM}")
    if not rule.of_text and not 0 < rule.below <= 1:
        raise _wrong(argument, f"below is {rule.below:g}; it must be above 0 and at most 1")
    if rule.within < 0 or rule.tokens < 0:
        raise _wrong(argument, "within and tokens must be 0 or more")
    try:
        re.compile(rule.refusal)
    except re.error as error:
        raise _wrong(argument, f"refusal is no regular expression: {error}") from None


def _require_end(name: str, found: Mapping[str, Rule]) -> None:
    seen = [name]
    while (rule := found.get(seen[-1])) is not None:
        seen.append(rule.to)
        if rule.to in seen[:-1]:
            raise ConfigError(f"--escalate goes round in a circle: {_chain(seen)}")


def _chain(names: Iterable[str]) -> str:
    return " -> ".join(names)


def _wrong(argument: str, what: str) -> ConfigError:
    return ConfigError(f"--escalate {argument}: {what}")
