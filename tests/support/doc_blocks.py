"""The blocks of code on a documentation page, which of them are commands, and who runs them.

Said on the page itself, in comments that readers do not see:

- `<!-- not run: REASON -->` before a block: no test runs it.
- `<!-- run by: tests/PATH.py -->`, once on a page: those of its blocks that are not marked are run
  by that module.
- `<!-- nothing here is run: REASON -->`, once on a page.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

PROGRAMS = (
    *("ds-serve", "ds-quantize", "ds-models", "ds-profile", "python", "python3", "pip", "curl"),
    *("make", "mkdir", "cat", "cp", "echo", "export", "kill", "apt-get", "docker", "podman"),
    *("helm", "kubectl", "prometheus", "openssl", "vllm", "tritonserver", "ray", "locust", "git"),
    *("wrk", "promtool", "sudo", "ssh", "tc", "ip"),
)
SHELLS = ("sh", "bash", "shell", "console")
DATA = ("toml", "yaml", "json", "text", "promql", "dockerfile", "ini")

_FENCED = re.compile(r"^```(?P<language>\S*)\n(?P<fenced>.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?P<indented>(?: {4}.*\n|\n(?= {4}))+)")
_NOT_RUN = re.compile(r"<!-- not run: ([^>]+?) -->\s*\Z")
_ELSEWHERE = re.compile(r"^<!-- run by: (\S+) -->$", re.MULTILINE)
_NOTHING = re.compile(r"^<!-- nothing here is run: ([^>]+?) -->$", re.MULTILINE)
_COMMAND = re.compile(
    rf"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)}|[\w.~-]*/\S+) (?!.*[├└])"
)


@dataclass(frozen=True)
class Block:
    """A block of a page; `line` is that of its first line of code."""

    page: str
    line: int
    language: str
    text: str
    reason: str = ""
    """Why it is not run; empty where it is to be."""

    @property
    def kind(self) -> str:
        """`python`, `shell`, or nothing for a block that is no command."""
        if self.language == "python":
            return "python"
        named = self.language in SHELLS
        return "shell" if named or (not self.language and self._has_command()) else ""

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    def _has_command(self) -> bool:
        return any(_COMMAND.match(line + " ") for line in self.text.splitlines())


@dataclass(frozen=True)
class Page:
    """A page: its commands, and who runs them if not `tests/docs`."""

    path: Path
    blocks: tuple[Block, ...]
    run_by: str
    reason: str
    """Why nothing on it is run; empty where something is."""

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def commands(self) -> list[Block]:
        return [block for block in self.blocks if block.kind]

    def to_run(self) -> list[Block]:
        """The commands that a test has to run."""
        return [] if self.reason else [block for block in self.commands() if not block.reason]


def read(path: Path) -> Page:
    """The page at `path`, with its fenced blocks and those indented ones that are commands."""
    text = path.read_text()
    run_by, nothing = _ELSEWHERE.search(text), _NOTHING.search(text)
    return Page(
        path,
        blocks(path.relative_to(ROOT).as_posix(), text),
        run_by[1] if run_by else "",
        nothing[1] if nothing else "",
    )


def pages() -> list[Page]:
    return [read(path) for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))]


def troubleshooting() -> list[re.Pattern[str]]:
    """The messages of docs/troubleshoot.md, … for anything."""
    page = (DOCS / "troubleshoot.md").read_text()
    quoted = re.findall(r"^\| (?:``(.+?) ``|`([^`]+)`) \|", page, re.MULTILINE)
    patterns = (".*".join(map(re.escape, "".join(each).split("…"))) for each in quoted)
    return [re.compile(pattern) for pattern in patterns]


def blocks(page: str, text: str) -> tuple[Block, ...]:
    """The blocks of a page's text, in their order."""
    return tuple(sorted(_blocks(page, text), key=lambda block: block.line))


def _blocks(page: str, text: str) -> Iterator[Block]:
    spans = []
    for found in _FENCED.finditer(text):
        spans.append(found.span())
        yield _block(page, text, found, found["language"], found.start("fenced"), found["fenced"])
    for found in _INDENTED.finditer(text):
        if not any(begin <= found.start() < end for begin, end in spans):
            code = textwrap.dedent(found["indented"])
            block = _block(page, text, found, "", found.start("indented"), code)
            if block.kind:
                yield block


def _block(
    page: str, text: str, found: re.Match[str], language: str, begin: int, code: str
) -> Block:
    marker = _NOT_RUN.search(text[: found.start()])
    reason = marker[1] if marker else ""
    return Block(page, text.count("\n", 0, begin) + 1, language, code, reason)
