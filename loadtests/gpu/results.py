"""What was measured, as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loadtests.gpu import proofs

Found = dict[str, Any]


def table(folder: Path) -> str:
    """Markdown of all that a folder holds."""
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    engines = {name.partition("-")[2]: of for name, of in parts.items() if name[:7] == "engine-"}
    servers = {name.partition("-")[2]: of for name, of in parts.items() if name[:7] == "server-"}
    lines: list[str] = []
    if engines or servers or "pytorch" in parts:
        lines = _rates(engines, servers, parts.get("pytorch", {}))
        lines += ["", *_answers(engines), "", *_singles(servers), ""]
    lines += proofs.lines(parts)
    return "\n".join(lines) + "\n"


def _rates(engines: Found, servers: Found, torch: Found) -> list[str]:
    sizes = sorted({int(size) for of in engines.values() for size in of["engine"]})
    lines = ["Images a second:", "", _row(["", *(f"batch {size}" for size in sizes)])]
    lines.append(_row(["---"] * (len(sizes) + 1)))
    for kind, of in engines.items():
        for what, title in (
            ("compute", "on the device alone"),
            ("bare", "without us, copies included"),
            ("engine", "the engine"),
        ):
            if what in of:
                lines.append(_row([f"{kind}, {title}", *_cells(of[what], sizes)]))
        if kind in servers:
            through = servers[kind]["batches"]
            lines.append(_row([f"{kind}, through the server", *_cells(through, sizes)]))
            lines.append(_row([f"{kind}, of that without us", *_shares(through, of, sizes)]))
    for kind in ("fp32", "tf32", "fp16"):
        if kind in torch:
            lines.append(_row([f"PyTorch {kind}", *_cells(torch[kind], sizes)]))
    return lines


def _answers(engines: Found) -> list[str]:
    lines = ["Answers against the CPU's, and what a plan is made of:", ""]
    names = ["", "largest error, of the largest value", "least cosine", "same first", "layers by"]
    lines += [_row([*names[:4], f"{names[4]} type"]), _row(["---"] * 5)]
    for kind, of in engines.items():
        said = of["answers"]
        layers = ", ".join(f"{n} {t}" for t, n in of.get("layers_by_type_of_input", {}).items())
        lines.append(
            _row([
                kind, f"{said['relative_error']:.4f}", f"{said['least_cosine']:.5f}",
                f"{said['same_first']:.0%}", layers,
            ])
        )  # fmt: skip
    return lines


def _singles(servers: Found) -> list[str]:
    lines = ["Single pictures of many clients, joined by the server:", ""]
    lines += [_row(["", "clients", "images/s", "of one client's"]), _row(["---"] * 4)]
    for kind, of in servers.items():
        alone = of["batches"].get("1") or of["batches"].get(1)
        many = of["singles"]
        times = f"{many['images_s'] / alone:.1f} times" if alone else ""
        lines.append(_row([kind, many["clients"], f"{many['images_s']:,.0f}", times]))
    return lines


def _cells(rates: Found, sizes: Iterable[int]) -> list[str]:
    found = {int(size): rate for size, rate in rates.items()}
    return [f"{found[size]:,.0f}" if size in found else "" for size in sizes]


def _shares(through: Found, of: Found, sizes: Iterable[int]) -> list[str]:
    whole = {int(size): rate for size, rate in of.get("bare", of["engine"]).items()}
    served = {int(size): rate for size, rate in through.items()}
    return [f"{served[s] / whole[s]:.0%}" if s in served and whole.get(s) else "" for s in sizes]


def _row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
