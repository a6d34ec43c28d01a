"""What vLLM servers say of themselves, among the server's own metrics: each sample with the labels
`model`, `version` and, where there are several, `replica`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ds_engines.errors import ServeError, Unavailable
from ds_serve.gateway.text_hop import Hop
from ds_serve.transport.messages import ModelState

SECONDS = 1.0
"""How long a reader of the metrics waits for a server's."""

ENGINE = "vllm"
PREFIX = "vllm:"
LOAD = "ds_load"

_HEAD = re.compile(r"^# (HELP|TYPE) (\S+) ?(.*)$")
_SAMPLE = re.compile(r"^([^{\s]+)(?:\{(.*)\})? (\S+)$")
_READY = "ready"


class Family(NamedTuple):
    """One metric: its `# HELP` and `# TYPE` lines, and its samples."""

    head: list[str]
    samples: list[str]

    @property
    def kind(self) -> str:
        return next((line.split()[3] for line in self.head if line.startswith("# TYPE")), "")


Families = dict[str, Family]


class Page(NamedTuple):
    """What one server has answered, and by which labels it is told from others."""

    model: str
    labels: str
    text: str


async def pages(states: Iterable[ModelState]) -> list[Page]:
    """Of all vLLM servers that are ready, asked at one time; one that is late is left out."""
    asked = [
        _page(state, address, labels)
        for state in states
        if state.state == _READY and state.spec is not None and state.spec.engine == ENGINE
        for address, labels in _addresses(state)
    ]
    return [page for page in await asyncio.gather(*asked) if page is not None]


def _addresses(state: ModelState) -> list[tuple[str, str]]:
    labels = f'model="{state.name}",version="{state.version}"'
    if not state.replicas:
        return [(state.address, labels)]
    return [
        (address, f'{labels},replica="{_replica(address, index)}"')
        for index, address in enumerate(state.replicas)
    ]


def _replica(address: str, index: int) -> str:
    """The number in its socket's folder, which stays when another replica goes; else the place."""
    found = re.search(r"/r(\d+)/", address)
    return found[1] if found else str(index)


async def _page(state: ModelState, address: str, labels: str) -> Page | None:
    text = await read(address)
    return Page(state.name, labels, text) if text else None


async def read(address: str) -> str:
    """What the server at a socket says; "" where it says nothing in time."""
    hop = Hop(address, "the server went away")
    try:
        async with asyncio.timeout(SECONDS), hop.exchange("GET", "/metrics", b"", {}) as reply:
            body = await reply.read()
        return body.decode() if reply.status == 200 else ""
    except (ServeError, TimeoutError, UnicodeDecodeError):
        return ""
    finally:
        hop.close(Unavailable("nobody asks any more"))


def merged(own: bytes, found: Sequence[Page]) -> bytes:
    """The server's own metrics with those of `found`: each family once, its samples together."""
    if not found:
        return own
    families = _families(own.decode(), "")
    loads: dict[str, list[float]] = {}
    for page in found:
        theirs = _families(page.text, PREFIX)
        loads.setdefault(page.model, []).append(_load(theirs))
        for name, family in theirs.items():
            into = families.setdefault(name, Family(family.head, []))
            if into.kind == family.kind:
                into.samples.extend(_labelled(line, page.labels) for line in family.samples)
    about = ["# HELP ds_load Requests that wait or run over those that can run at once: the figure "
             "to scale on.", "# TYPE ds_load gauge"]  # fmt: skip
    into = families.setdefault(LOAD, Family(about, []))
    into.samples.extend(
        f'{LOAD}{{model="{model}"}} {sum(each) / len(each)}' for model, each in loads.items()
    )
    lines = [line for each in families.values() for line in (*each.head, *each.samples)]
    return ("\n".join(lines) + "\n").encode()


def _families(text: str, prefix: str) -> Families:
    """Those whose names begin so, in the order in which they stand there. A family ends where the
    next one's HELP or TYPE begins.
    """
    found: Families = {}
    family = Family([], [])
    for line in text.splitlines():
        if head := _HEAD.match(line):
            family = Family([], [])
            if head[2].startswith(prefix) and not head[2].endswith("_created"):
                family = found.setdefault(head[2], family)
            family.head.append(line)
        elif line and not line.startswith("#"):
            family.samples.append(line)
    return found


def _labelled(line: str, labels: str) -> str:
    sample = _SAMPLE.match(line)
    if sample is None:
        return line
    own = f",{sample[2]}" if sample[2] else ""
    return f"{sample[1]}{{{labels}{own}}} {sample[3]}"


def _load(families: Families) -> float:
    """vLLM does not say how many requests can run at once: as many as run while others wait. While
    none waits, the part of the KV cache that is in use says how far that is.
    """
    running, waiting, cache = (
        _sum(families, f"{PREFIX}{name}")
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    )
    return (running + waiting) / max(1.0, running) if waiting else cache


def _sum(families: Families, name: str) -> float:
    samples = families[name].samples if name in families else []
    return sum(float(line.rpartition(" ")[2]) for line in samples)
