"""What docs/troubleshoot.md quotes is what the code says."""

from __future__ import annotations

import re

import pytest
from doc_blocks import DOCS
from source_messages import messages, plain

PAGE = (DOCS / "troubleshoot.md").read_text()
QUOTED = re.compile(r"^\| (?:``(?P<long>.+?) ``|`(?P<short>[^`]+)`) \|", re.MULTILINE)
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| [^-m]", line)]


@pytest.fixture(scope="module")
def source() -> set[str]:
    return messages()


@pytest.mark.parametrize(
    "quoted", [found["long"] or found["short"] for found in QUOTED.finditer(PAGE)]
)
def test_a_quoted_message_is_in_the_source(quoted: str, source: set[str]) -> None:
    words = plain(quoted).removesuffix("…").rstrip()
    assert len(words.replace("…", "")) > 12, "too short to be found by"
    assert any(words in text for text in source)


def test_each_message_has_a_way_out() -> None:
    cells = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in ROWS]
    assert len(cells) > 50
    assert [row for row in cells if len(row) < 3 or not row[-1]] == []


def test_a_message_that_nobody_says_is_found_out(source: set[str]) -> None:
    assert not any("port … on … is used by another; choose" in text for text in source)
