"""What the measurements with vLLM make of what they have found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loadtests.vllm import results, shapes, throughput

MACHINE = {"gpu": "1 × H100", "vllm": "0.26.0"}  # noqa: RUF001


def run(server: str, load: str, tokens: float, first: float, number: int = 0) -> dict[str, Any]:
    return {
        "server": server,
        "load": load,
        "round": number,
        "output_throughput": tokens,
        "request_throughput": tokens / 128,
        "median_ttft_ms": first,
        "median_tpot_ms": 6.0,
    }


def test_shares_are_of_the_medians_without_the_warm_up() -> None:
    runs = [run("vllm", "40 req/s", 1.0, 900.0, -1), run("ds-serve", "40 req/s", 1.0, 900.0, -1)]
    runs += [run("vllm", "40 req/s", 5000.0, 26.0), run("ds-serve", "40 req/s", 4950.0, 28.0)]
    runs += [run("vllm", "unlimited", 6000.0, 900.0), run("ds-serve", "unlimited", 5000.0, 950.0)]
    slow, fast = throughput.ratios(runs)
    assert (slow["throughput_share"], slow["ttft_added_ms"], slow["good"]) == (0.99, 2.0, True)
    assert (fast["throughput_share"], fast["good"]) == (0.8333, False)


def test_the_newest_result_of_a_part_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "text.md"
    page.write_text("before\n<!-- vllm: begin -->\nwhat was there\n<!-- vllm: end -->\nafter\n")
    monkeypatch.setattr(results, "PAGE", page)
    crash = {"in_flight": 32, "errors": 32, "silent": 0, "all_failed_within_s": 0.2}
    found = {"date": "2026-11-22", "machine": MACHINE, "back_after_s": 61.0, **crash}
    for name, changes in {
        "one": {},
        "two": {"back_after_s": 59.5},
        "failed": {"error": "no time was left for it"},
        "rehearsed": {"machine": {"gpu": "none, a rehearsal"}},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "crash.json").write_text(json.dumps(found | changes))
    results.write([tmp_path / name for name in ("one", "two", "failed", "rehearsed")])
    text = page.read_text()
    assert "| 32 | 32 | 0 | 0.2 s | 59.5 s |" in text
    assert "what was there" not in text
    assert text.endswith("after\n")


@pytest.mark.parametrize(("size", "billions"), [("8b", 8.0), ("20b", 20.4)])
def test_a_shape_has_the_size_that_it_is_called_by(size: str, billions: float) -> None:
    assert shapes.parameters(size) == pytest.approx(billions, abs=0.1)
