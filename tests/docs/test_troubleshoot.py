"""What docs/troubleshoot.md quotes is what the code says."""

from __future__ import annotations

import re

import pytest
from doc_blocks import DOCS
from source_messages import messages, plain, raised

PAGE = (DOCS / "troubleshoot.md").read_text()
QUOTED = re.compile(r"^\| (?:``(?P<long>.+?) ``|`(?P<short>[^`]+)`) \|", re.MULTILINE)
DOORS = (
    "engines/ds_engines/base.py",
    "server/ds_serve/gateway/budget.py",
    "server/ds_serve/gateway/http/compression.py",
    "server/ds_serve/gateway/http/kserve_codec.py",
    "server/ds_serve/gateway/parameters.py",
    "server/ds_serve/gateway/requests.py",
    "server/ds_serve/security/guard.py",
    "server/ds_serve/settings.py",
    "server/ds_serve/upstream.py",
    "server/ds_serve/vllm/installation.py",
)
"""The modules that check what operators and clients say: each of their errors is a common one."""

ROWS = [line for line in PAGE.splitlines() if re.match(r"\| [^-m]", line)]


@pytest.fixture(scope="module")
def source() -> set[str]:
    return messages()


MESSAGES = [found["long"] or found["short"] for found in QUOTED.finditer(PAGE)]


def sought(quoted: str) -> str:
    return plain(quoted).removesuffix("…").rstrip()


@pytest.mark.parametrize("quoted", MESSAGES)
def test_a_quoted_message_is_in_the_source(quoted: str, source: set[str]) -> None:
    words = sought(quoted)
    assert len(words.replace("…", "")) >= 12, "too short to be found by"
    assert any(words in text for text in source)


@pytest.mark.parametrize("module", DOORS)
def test_what_is_refused_at_the_doors_is_found(module: str) -> None:
    said = {text for text in raised(module) if len(text.replace("…", "")) > 12}
    assert said, "it raises nothing"
    assert [text for text in said if not any(sought(each) in text for each in MESSAGES)] == []


def test_each_message_has_a_way_out() -> None:
    cells = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in ROWS]
    assert len(cells) > 50
    assert [row for row in cells if len(row) < 3 or not row[-1]] == []


def test_a_message_that_nobody_says_is_found_out(source: set[str]) -> None:
    assert not any("port … on … is used by another; choose" in text for text in source)
