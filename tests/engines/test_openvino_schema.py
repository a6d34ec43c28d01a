"""Which JSON schemas may constrain an answer, and which are refused by name."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_engines.errors import InvalidRequest
from ds_engines.openvino_schema import prepare_schema


def prepare(schema: Any) -> Any:
    return json.loads(prepare_schema(json.dumps(schema)))


@pytest.mark.parametrize(
    "keyword", ["not", "if", "dependentRequired", "uniqueItems", "contains", "multipleOf"]
)
def test_a_keyword_that_is_not_enforced_is_refused(keyword: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{keyword}', which is not enforced"):
        prepare({"type": "object", "properties": {"a": {keyword: True}}})


def test_a_property_may_have_a_keywords_name() -> None:
    schema = {"type": "object", "properties": {"not": {"type": "string"}, "if": True}}
    assert prepare(schema) == schema


def test_several_schemas_in_all_of_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="'allOf'"):
        prepare({"allOf": [{"type": "string"}, {"minLength": 2}]})


def test_what_is_no_schema_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="3 where a schema belongs"):
        prepare({"items": 3})
    with pytest.raises(InvalidRequest, match="not JSON"):
        prepare_schema("{")


def test_sizes_are_bounded() -> None:
    with pytest.raises(InvalidRequest, match="maxLength 70000 is over"):
        prepare({"maxLength": 70000})
    with pytest.raises(InvalidRequest, match="characters, over"):
        prepare({"description": "x" * 70000})
    deep: Any = True
    for _ in range(60):
        deep = {"items": deep}
    with pytest.raises(InvalidRequest, match="nested deeper"):
        prepare(deep)
    with pytest.raises(InvalidRequest):
        prepare_schema('{"items":' * 5000 + "true" + "}" * 5000)


def test_constants_that_would_be_misread_become_patterns() -> None:
    """The library reads "é" and the hexadecimal digit after it as one character."""
    found = prepare({"enum": ["décédé", "vivant", 3]})
    pattern = found["anyOf"][0]["pattern"]
    assert re.fullmatch(pattern, "décédé")
    assert found["anyOf"][1] == {"enum": ["vivant", 3]}
    assert prepare({"const": "été"}) == {"const": "été"}


def test_what_would_be_misread_and_has_no_other_spelling_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="constant 'é1\\\\n' cannot be enforced"):
        prepare({"const": "é1\n"})
    with pytest.raises(InvalidRequest, match="property name 'décès' cannot be enforced"):
        prepare({"properties": {"décès": True}})
    with pytest.raises(InvalidRequest, match=r"pattern .* cannot be enforced"):
        prepare({"pattern": "[à-üa-z]"})
    assert prepare({"pattern": "éa[a-zà-ü]"}) == {"pattern": "éa[a-zà-ü]"}


SCHEMAS = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3) | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "items", "enum", "const", "anyOf", "x"]), inner
        )
    ),
    max_leaves=8,
)


@given(SCHEMAS)
def test_any_json_is_prepared_or_refused(schema: Any) -> None:
    try:
        prepared = prepare_schema(json.dumps(schema))
    except InvalidRequest:
        return
    assert isinstance(json.loads(prepared), dict | bool)
