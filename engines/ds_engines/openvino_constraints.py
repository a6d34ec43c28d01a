"""What an answer is made to look like: a JSON schema, a regular expression, a grammar, calls.

The library compiles a constraint inside the step that first samples its request. One that does
not compile leaves the whole pipeline unusable, and there is no call that only compiles. So each
is first run through a second pipeline, which shares the tokenizer (and with it the compiler and
its cache) but has a model of one layer and no weights: 0.1 s to build, milliseconds to ask.
"""

from __future__ import annotations

import functools
import math
import operator
import re
import tempfile
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ds_engines.errors import InvalidRequest
from ds_engines.openvino_schema import MAX_BYTES, MAX_REPEATS, prepare_schema, write_empty_model

MAX_CHOICES = 1024
MAX_CALLS = 4
"""At once, where something follows the last."""

_COUNTED = re.compile(r"(?<!\\)\{(\d+)(?:,(\d*))?\}")


class Tag(msgspec.Struct, frozen=True, array_like=True):
    """A call as it is written: `begin`, then JSON that matches `schema`, then `end`."""

    begin: str
    schema: str
    end: str


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """What the whole answer must match.

    `text` is the JSON schema, the regular expression or the grammar (EBNF). "calls" are one of
    `tags` or several, `separator` between them, `before` and `after` around all; with a
    `trigger` there may be free text around them, which it ends. "either" is any one of `among`.
    """

    kind: Literal["json", "regex", "grammar", "choice", "calls", "either"]
    text: str = ""
    choices: tuple[str, ...] = ()
    before: str = ""
    tags: tuple[Tag, ...] = ()
    after: str = ""
    trigger: str = ""
    separator: str = ""
    single: bool = False
    among: tuple[Constraint, ...] = ()


class ConstraintChecker:
    """Compiles constraints against `tokenizer`, whose model has `vocabulary` output tokens."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        import openvino_genai  # type: ignore[import-untyped] # noqa: PLC0415

        self._genai = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = 4
        with tempfile.TemporaryDirectory(prefix="ds-serve-") as folder:
            path = Path(folder, "empty.gguf")
            write_empty_model(path, vocabulary)
            self._pipeline = openvino_genai.ContinuousBatchingPipeline(
                str(path), tokenizer, scheduler, "CPU"
            )
        self._numbers = 0

    def check(self, constraint: Constraint) -> Constraint:
        """The constraint as the library must be given it.

        Raises InvalidRequest where it cannot be enforced, saying what is wrong.
        """
        constraint = prepared(constraint)
        self._try(constraint)
        return constraint

    def _try(self, constraint: Constraint) -> None:
        self._numbers += 1
        handle = self._add(constraint)
        try:
            self._pipeline.step()
        except RuntimeError as error:
            raise InvalidRequest(f"{_what(constraint)} cannot be used: {reason(error)}") from error
        finally:
            handle.cancel()
            self._pipeline.step()

    def _add(self, constraint: Constraint) -> Any:
        import openvino  # noqa: PLC0415

        config = self._genai.GenerationConfig()
        config.max_new_tokens = 1
        config.apply_chat_template = False
        config.structured_output_config = structured(constraint)
        prompt = openvino.Tensor(np.ones((1, 1), dtype=np.int64))
        return self._pipeline.add_request(self._numbers, prompt, config)


def prepared(constraint: Constraint) -> Constraint:
    """Its schemas spelled so that the library reads them right.

    Raises InvalidRequest for what is too large, or is not enforced.
    """
    change = functools.partial(msgspec.structs.replace, constraint)
    match constraint.kind:
        case "json":
            return change(text=prepare_schema(constraint.text))
        case "calls":
            tags = (Tag(t.begin, prepare_schema(t.schema), t.end) for t in constraint.tags)
            return change(tags=tuple(tags))
        case "either":
            return change(among=tuple(prepared(each) for each in constraint.among))
        case "choice":
            _check_choices(constraint.choices)
        case _:
            _check_pattern(constraint)
    return constraint


def _check_choices(choices: tuple[str, ...]) -> None:
    if not 0 < len(choices) <= MAX_CHOICES:
        raise InvalidRequest(f"choice has {len(choices)} strings; 1 to {MAX_CHOICES} are allowed")
    if "" in choices:
        raise InvalidRequest("choice has an empty string")
    if sum(map(len, choices)) > MAX_BYTES:
        raise InvalidRequest(f"the choices have over {MAX_BYTES} characters together")


def _check_pattern(constraint: Constraint) -> None:
    """Bounds the size of what a pattern compiles to, as far as its text tells."""
    if not constraint.text:
        raise InvalidRequest(f"{_what(constraint)} is empty")
    if len(constraint.text) > MAX_BYTES:
        size = len(constraint.text)
        raise InvalidRequest(f"{_what(constraint)} has {size} characters, over {MAX_BYTES}")
    counts = _COUNTED.findall(constraint.text)
    repeats = math.prod(max(int(high or low), 1) for low, high in counts)
    if repeats > MAX_REPEATS:
        raise InvalidRequest(
            f"{_what(constraint)} has counted repeats that multiply to over {MAX_REPEATS}"
        )


def _what(constraint: Constraint) -> str:
    return {
        "json": "the JSON schema",
        "regex": "the regular expression",
        "grammar": "the grammar",
        "choice": "the choice",
        "calls": "the parameters' JSON schema",
        "either": "the JSON schema",
    }[constraint.kind]


def structured(constraint: Constraint) -> Any:
    """The library's own form of it."""
    form = _form()
    match constraint.kind:
        case "json":
            return form(json_schema=constraint.text)
        case "regex":
            return form(regex=constraint.text)
        case "grammar":
            return form(grammar=constraint.text)
    return form(compound_grammar=_compound(constraint))


def _form() -> Any:
    import openvino_genai  # noqa: PLC0415

    return openvino_genai.StructuredOutputConfig


def _compound(constraint: Constraint) -> Any:
    form = _form()
    match constraint.kind:
        case "json":
            return form.JSONSchema(constraint.text)
        case "regex":
            return form.Regex(constraint.text)
        case "grammar":
            return form.EBNF(constraint.text)
        case "choice":
            return _any_of([form.ConstString(choice) for choice in constraint.choices])
        case "either":
            return _any_of([_compound(each) for each in constraint.among])
    return _calls(constraint)


def _any_of(parts: list[Any]) -> Any:
    return functools.reduce(operator.or_, parts)


def _calls(constraint: Constraint) -> Any:
    form = _form()
    tags = [form.Tag(tag.begin, form.JSONSchema(tag.schema), tag.end) for tag in constraint.tags]
    if constraint.trigger:
        return form.TriggeredTags([constraint.trigger], tags, False, constraint.single)
    if constraint.before:
        return form.ConstString(constraint.before) + _spelled_out(constraint, tags)
    return form.TagsWithSeparator(tags, constraint.separator, True, constraint.single)


def _spelled_out(constraint: Constraint, tags: list[Any]) -> Any:
    """One call or a few, then what follows: after tags without number the library takes nothing."""
    form = _form()
    rest: Any = form.ConstString(constraint.after)
    for _ in range(0 if constraint.single else MAX_CALLS - 1):
        another = form.ConstString(constraint.separator) + _any_of(tags) + rest
        rest = form.ConstString(constraint.after) | another
    return _any_of(tags) + rest


def reason(error: Exception) -> str:
    """The last line that says something: the library puts its own source's place before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    if ".cc:" in last:
        last = last.rpartition(".cc:")[2].lstrip("0123456789: ")
    return last.rpartition(" is false: ")[2]
