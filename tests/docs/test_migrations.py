"""The pages for those who come from other servers name all of their flags that change."""

from __future__ import annotations

import re
import shlex

import pytest
from doc_blocks import DOCS

from ds_serve import cli
from ds_serve.triton_flags import ALIASES, translate
from ds_serve.vllm.command import OWNED, REPLACED

TRITON = (DOCS / "migrate-triton.md").read_text()
VLLM = (DOCS / "migrate-vllm.md").read_text()


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]+", text))


def own_flags() -> set[str]:
    return {word for action in cli.parser()._actions for word in action.option_strings}


@pytest.mark.parametrize("flag", [*OWNED, *REPLACED])
def test_each_flag_of_vllm_that_is_ours_is_named(flag: str) -> None:
    assert f"`{flag}`" in VLLM


@pytest.mark.parametrize("flag", ALIASES)
def test_each_flag_of_triton_with_another_name_is_named(flag: str) -> None:
    assert f"`{flag}`" in TRITON


@pytest.mark.parametrize(
    "row", re.findall(r"^\| (`--.+?) \| (`--.+?) \|$", TRITON, re.MULTILINE), ids=lambda row: row[0]
)
def test_the_table_of_triton_s_flags(row: tuple[str, str]) -> None:
    """What stands on the left becomes what stands on the right."""
    wanted = flags(row[1])
    for words in re.findall(r"`(--[^`]+)`", row[0]):
        made = set(translate([*shlex.split(words.replace("…", "1")), *_value(words)]))
        assert {word for word in made if word.startswith("--")} <= wanted
        assert wanted <= own_flags()


def _value(words: str) -> list[str]:
    return [] if " " in words else ["1"]


@pytest.mark.parametrize("word", sorted(set(re.findall(r"\| (`--[^|]*`)[^|]*\|$", VLLM, re.M))))
def test_what_stands_for_a_flag_of_vllm_is_ours(word: str) -> None:
    assert flags(word) <= own_flags()
