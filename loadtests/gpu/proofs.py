"""What the parts of `all` have found, as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Found = dict[str, Any]
MB = 1_000_000


def lines(parts: Found) -> Iterator[str]:
    """Markdown of those that are there."""
    for name, rows in (
        ("scaling", _scaling), ("sentences", _sentences), ("reloads", _reloads),
        ("faults", _faults), ("exchange", _exchange),
    ):  # fmt: skip
        if name not in parts:
            continue
        found = parts[name]
        yield from rows(found)
        if "failed" in found:
            yield from ("", f"**{name} failed**: {_last(found['failed'])}")
        yield ""


def _last(words: str) -> str:
    return next((line for line in reversed(words.splitlines()) if line.strip()), "")


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _head(title: str, *names: str) -> list[str]:
    return [title, "", _row("", *names), _row(*["---"] * (len(names) + 1))]


def _scaling(found: Found) -> Iterator[str]:
    count, size = found.get("gpus"), found.get("batch")
    title = f"Images a second of ResNet-50, batches of {size} in shared memory, {found['device']}:"
    yield from _head(title, "one", f"{count} together", "scaling", "failed requests")
    for kind, of in found.get("kinds", {}).items():
        if "failed" in of:
            yield _row(kind, "", "", "", _last(of["failed"]))
            continue
        lost = of["one: requests"][1] + of["all: requests"][1]
        yield _row(kind, f"{of['one']:,.0f}", f"{of['all']:,.0f}", f"{of['scaling']:.1%}", lost)


def _sentences(found: Found) -> Iterator[str]:
    title = f"Sentences a second of MiniLM ({found.get('weights')}), {found.get('tokens')} tokens:"
    kinds = found.get("kinds", {})
    rates = [of[what] for of in kinds.values() for what in ("bare", "server") if _rates(of, what)]
    sizes = sorted({int(size) for each in rates for size in each})
    yield from _head(title, *(f"batch {size}" for size in sizes))
    for name, of in kinds.items():
        for what in ("bare", "engine", "server"):
            if held := _rates(of, what):
                yield _row(
                    f"{name}, {what}", *(f"{held[n]:,.0f}" if n in held else "" for n in sizes)
                )
        bare, server = _rates(of, "bare"), _rates(of, "server")
        if bare and server:
            shares = (
                f"{server[n] / bare[n]:.0%}" if n in server and n in bare else "" for n in sizes
            )
            yield _row(f"{name}, server of bare", *shares)
    yield ""
    for name, of in kinds.items():
        said = of.get("server answers", {})
        if said:
            yield (
                f"{name}: answers differ from the CPU's by {said['largest_error']:.5f} at most, "
                f"least cosine {said['least_cosine']:.6f}; singles of 256 clients: "
                f"{of.get('singles of 256 clients', '-')}; failed requests: {of['requests'][1]}."
            )
        yield from (f"{name}: {key}: {_last(of[key])}" for key in of if key.endswith("failed"))


def _rates(of: Found, what: str) -> dict[int, float]:
    held = of.get(what)
    return {int(size): rate for size, rate in held.items()} if isinstance(held, dict) else {}


def _reloads(found: Found) -> Iterator[str]:
    names = ("cycles", "device memory grew by", "server's memory grew by", "seconds each")
    yield from _head(f"Loads and unloads, {found['device']}:", *names)
    for name, of in found.get("kinds", {}).items():
        if "cycles" not in of:
            yield _row(name, 0, "", "", _last(of.get("failed", "")))
            continue
        seconds = sorted(of["seconds"])[len(of["seconds"]) // 2]
        grew = (f"{of[what] / MB:+,.1f} MB" for what in ("device_growth", "host_growth"))
        more = f" ({_last(of['failed'])})" if "failed" in of else ""
        yield _row(name, f"{of['cycles']} of {of['of']}", *grew, f"{seconds:.1f}{more}")


def _faults(found: Found) -> Iterator[str]:
    for name, of in found.get("kinds", {}).items():
        yield from _head(f"{name}, {found['device']}:", "what came of it", "afterwards")
        for title, said in of.items():
            if isinstance(said, dict):
                words = "; ".join(f"{k}: {v}" for k, v in said.items() if k != "afterwards")
                yield _row(title, words.replace("|", "/"), said.get("afterwards", ""))
            else:
                yield _row(title, _last(said), "")
        yield ""


def _exchange(found: Found) -> Iterator[str]:
    yield from _head(f"CUDA shared memory, {found['device']}:", "what came of it")
    for name, of in found.get("kinds", {}).items():
        said = "; ".join(f"{k}: {v}" for k, v in of.items()) if isinstance(of, dict) else of
        yield _row(name, said)
