"""The site of `make docs` has all pages; whether their links lead somewhere is mkdocs' to say."""

from __future__ import annotations

import re
import runpy

import pytest
from doc_blocks import DOCS, ROOT

SITE = runpy.run_path(str(ROOT / "scripts" / "site"))
NAV = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)


def test_the_menu_names_each_page_once() -> None:
    pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert sorted(NAV) == sorted(pages | set(SITE["NAMES"].values()))


@pytest.mark.parametrize(
    ("page", "said", "becomes"),
    [
        ("README.md", "[a](docs/text.md#vllm)", "[a](text.md#vllm)"),
        ("docs/text.md", "[a](README.md), [b](../README.md)", "[a](pages.md), [b](index.md)"),
        ("docs/engines.md", "[a folder](examples/engine)", "a folder"),
        ("README.md", "[a](https://example.org/x.md)", "[a](https://example.org/x.md)"),
        ("docs/text.md", "```\n[a](README.md)\n```", "```\n[a](README.md)\n```"),
    ],
)
def test_links_lead_to_where_things_are_on_the_site(page: str, said: str, becomes: str) -> None:
    assert SITE["rewritten"](ROOT / page, said) == becomes
