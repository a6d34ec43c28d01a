"""The parts' results as tables, between marks in docs/text.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loadtests.report import write as put

PAGE = Path(__file__).resolve().parents[2] / "docs" / "text.md"

Rows = list[tuple[str, ...]]


def write(folders: Sequence[Path]) -> None:
    """Put the newest result of each part into the page. Raises BenchmarkError, OSError."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for part in TABLES:
            file = folder / f"{part}.json"
            if file.is_file() and _counts(result := json.loads(file.read_text())):
                found[part] = result
    put(PAGE, "vllm", markdown(found))


def _counts(result: dict[str, Any]) -> bool:
    """Neither what failed nor a rehearsal is a result."""
    return "error" not in result and not result["machine"]["gpu"].startswith("none")


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """One section for each part that there is a result of."""
    pieces = [
        f"{TITLES[part]} {_about(found[part])}\n\n{_table(rows(found[part]))}"
        for part, rows in TABLES.items()
        if part in found
    ]
    return "\n\n".join(pieces) or "Nothing is measured yet."


def _about(result: dict[str, Any]) -> str:
    machine = ", ".join(
        value if name == "gpu" else f"{name} {value}" for name, value in result["machine"].items()
    )
    more = f"; {result['model']}" if "model" in result else ""
    more += f"; {result['gateways']} gateways" if "gateways" in result else ""
    return f"({result['date']}, {machine}{more})"


def _table(rows: Rows) -> str:
    head, *rest = rows
    lines = [head, tuple("---" for _ in head), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _answers(result: dict[str, Any]) -> Rows:
    marks = {True: "yes", False: "**no**", None: "not asked"}
    rows: Rows = [("SmolLM2 behind ds-serve", "right", "what it said")]
    return rows + [
        (name, marks[check["good"]], _cell(check["said"]))
        for name, check in result["checks"].items()
    ]


def _throughput(result: dict[str, Any]) -> Rows:
    rows: Rows = [
        ("load", "server", "output tok/s", "req/s", "TTFT p50 ms", "TPOT p50 ms", "of vLLM alone")
    ]
    shares = {each["load"]: each for each in result["ratios"]}
    for run in result["runs"]:
        if run["round"] < 0:
            continue
        ratio = shares.get(run["load"], {})
        said = ""
        if run["server"] == "ds-serve" and ratio:
            said = f"{ratio['throughput_share']:.1%}, TTFT {ratio['ttft_added_ms']:+.1f} ms"
        rows.append(
            (
                run["load"],
                run["server"],
                f"{run['output_throughput']:,.0f}",
                f"{run['request_throughput']:.1f}",
                f"{run['median_ttft_ms']:.1f}",
                f"{run['median_tpot_ms']:.2f}",
                said,
            )
        )
    return rows


def _crash(result: dict[str, Any]) -> Rows:
    return [
        (
            "in flight",
            "told of an error",
            "cut off without a word",
            "all told within",
            "back after",
        ),
        (
            str(result["in_flight"]),
            str(result["errors"] - result["silent"]),
            str(result["silent"]),
            f"{result['all_failed_within_s']} s",
            f"{result['back_after_s']} s",
        ),
    ]


def _long(result: dict[str, Any]) -> Rows:
    rows: Rows = [
        ("prompt tokens", "chunked prefill", "TTFT ms", "KV cache of it", "others' longest gap ms")
    ]
    return rows + [
        (
            f"{each['tokens']:,}",
            "on" if each["chunked"] else "off",
            f"{each['ttft_ms']:.0f}",
            f"{each['kv_mb']:,.0f} MB",
            f"{each['gap_ms']:.0f}",
        )
        for each in result["prompts"]
    ]


def _parallel(result: dict[str, Any]) -> Rows:
    rows: Rows = [("GPUs", "output tok/s", "TTFT p50 ms", "TPOT p50 ms", "efficiency")]
    return rows + [
        (
            str(each["gpus"]),
            f"{each['output_throughput']:,.0f}",
            f"{each['median_ttft_ms']:.1f}",
            f"{each['median_tpot_ms']:.2f}",
            f"{each['efficiency']:.1%}",
        )
        for each in result["sizes"]
    ]


def _kinds(result: dict[str, Any]) -> Rows:
    rows: Rows = [("input", "architecture", "answers", "what it said")]
    return rows + [
        (
            each["input"],
            each["architecture"],
            "yes" if each["good"] else "**no**",
            _cell(each["said"]),
        )
        for each in result["kinds"]
    ]


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 120 else text[:117] + "..."


TABLES: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "answers": _answers,
    "throughput": _throughput,
    "crash": _crash,
    "long_prompts": _long,
    "parallel": _parallel,
    "kinds": _kinds,
}
TITLES = {
    "answers": "SmolLM2-135M-Instruct behind ds-serve, asked over each protocol",
    "throughput": "`vllm bench serve` against vLLM alone and against ds-serve, in turns",
    "crash": "The engine's process killed under load",
    "long_prompts": "One long prompt while others are answered",
    "parallel": "One model over several GPUs by tensor parallelism",
    "kinds": "Models that take more than text, of these shapes and with dummy weights",
}
