"""How models write calls, by their chat templates."""

from __future__ import annotations

from typing import Any

import pytest

from ds_engines.openvino_tools import (
    Call,
    Listed,
    Llama,
    Objects,
    Pythonic,
    Wrapped,
    style_of,
)

CITY = Call("f", '{"city": "Rome"}')
X = Call("f", '{"x": 1}')
WRITTEN: list[tuple[Any, str, list[Call]]] = [
    (Wrapped, '<tool_call>\n{"name": "f", "arguments": {"city": "Rome"}}\n</tool_call>', [CITY]),
    (
        Wrapped,
        '<tool_call>{"name": "f", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>',
        [CITY],
    ),
    (Wrapped, "<tool_call>nonsense</tool_call>", []),
    (Listed, '[TOOL_CALLS] [{"name": "f", "arguments": {"city": "Rome"}}]', [CITY]),
    (Listed, '[TOOL_CALLS]f[ARGS]{"city": "Rome"}[TOOL_CALLS]f[ARGS]{}', [CITY, Call("f", "{}")]),
    (Listed, "[TOOL_CALLS]f[ARGS]{", []),
    (Listed, "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g", []),
    (Objects, '{"tool_calls": [{"name": "f", "arguments": {"city": "Rome"}, "id": "1"}]}', [CITY]),
    (Objects, '{"name": "f", "arguments": {"city": "Rome"}}', [CITY]),
    (Objects, '{"name": "Ann", "age": 3}', []),
    (Objects, '{"tool_calls": [{"name": "f", "arguments": {}}, 3]}', []),
    (Objects, "[]", []),
    (Llama, '{"name": "f", "parameters": {"city": "Rome"}}', [CITY]),
    (Llama, '<|python_tag|>{"name": "f", "parameters": {"city": "Rome"}}', [CITY]),
    (Llama, '{"name": "f"', []),
    (Llama, "{}", []),
    (Pythonic, '[f(city="Rome"), a.b(x=[1, None])]', [CITY, Call("a.b", '{"x": [1, null]}')]),
    (Pythonic, "[f(__import__('os'))]", []),
    (Pythonic, "[f(x=g())]", []),
    (Pythonic, "[f(", []),
]


@pytest.mark.parametrize(("style", "text", "calls"), WRITTEN)
def test_calls_are_read(style: Any, text: str, calls: list[Call]) -> None:
    assert style().parse(text) == calls
    assert not calls or style().begins(text)


@pytest.mark.parametrize(("style", "text", "calls"), WRITTEN)
def test_the_beginning_of_a_call_may_become_one(style: Any, text: str, calls: list[Call]) -> None:
    if calls:
        assert all(style().begins(text[:size]) for size in range(len(text)))


@pytest.mark.parametrize("style", [Wrapped, Listed, Objects, Llama, Pythonic])
def test_talk_is_no_call(style: Any) -> None:
    assert not style().begins("The weather")
    assert style().begins("  ")


def test_an_object_of_another_kind_is_passed_on_soon() -> None:
    assert not Objects().begins('{"x')
    assert Objects().begins('{"na')
    assert not Objects().begins('{"nb')


@pytest.mark.parametrize(
    ("template", "style"),
    [
        (None, Objects),
        ("{{ messages }}", Objects),
        ("{% if tools %}<tool_call>{% endif %}", Wrapped),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", Listed),
        ('{% if tools %}{"name": function name, "parameters": dictionary}{% endif %}', Llama),
        ("{% if tools %}[func_name1(params_name1=1)]{% endif %}", Pythonic),
    ],
)
def test_the_template_tells_the_way(template: str | None, style: type) -> None:
    assert type(style_of(template)) is style


def test_ids() -> None:
    assert Objects().call_id() != Objects().call_id()
    assert len(Listed().call_id()) == 9
    assert Listed().call_id().isalnum()
