"""`vllm bench serve`, several runs in one process: importing it takes longer than a run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.perf_analyzer import BenchmarkError
from loadtests.vllm.servers import Place, Running

# Its command line is not in the build for processors, its function is.
_PROGRAM = """
import argparse, json, sys
from vllm.benchmarks.serve import add_cli_args, main
if __name__ == "__main__":
    for words in json.loads(open(sys.argv[1]).read()):
        parser = argparse.ArgumentParser()
        add_cli_args(parser)
        print("run", words, flush=True)
        main(parser.parse_args(words))
"""

KEPT = (
    "duration",
    "completed",
    "failed",
    "request_throughput",
    "output_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_tpot_ms",
    "p99_tpot_ms",
    "median_itl_ms",
)


@dataclass(frozen=True)
class Load:
    """`rate` in requests a second, 0: all at once; prompts and answers of so many tokens."""

    requests: int
    rate: float = 0.0
    tokens_in: int = 512
    tokens_out: int = 128
    seed: int = 0

    @property
    def said(self) -> str:
        return f"{self.rate:g} req/s" if self.rate else "unlimited"


@dataclass(frozen=True)
class Run:
    """One run: of which server, how much load, in which round."""

    server: Running
    load: Load
    round: int = 0

    @property
    def file(self) -> str:
        return f"bench-{self.server.name}-{self.load.said.split()[0]}-{self.round}.json"


def run(place: Place, model: str, tokenizer: Path, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What each run has found, in order. Raises BenchmarkError, with what was printed."""
    jobs = place.out / "bench-jobs.json"
    jobs.write_text(json.dumps([_words(place, model, tokenizer, each) for each in runs]))
    program = place.out / "bench_program.py"
    program.write_text(_PROGRAM)
    log = place.out / "logs" / "bench.log"
    with log.open("wb") as file:
        try:
            done = subprocess.run(
                [place.python, str(program), str(jobs)],
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=max(1.0, place.left),
                env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
                check=False,
            )
            status: int | str = done.returncode
        except subprocess.TimeoutExpired:
            status = "no time left"
    found = [_read(place, each) for each in runs]
    if not any(found):
        tail = log.read_text(errors="replace")[-2500:]
        raise BenchmarkError(f"vllm bench serve: {status}:\n{tail}")
    return [each for each in found if each]


def _words(place: Place, model: str, tokenizer: Path, each: Run) -> list[str]:
    load = each.load
    return [
        "--backend", "openai", "--endpoint", "/v1/completions",
        "--base-url", each.server.url, "--model", model, "--tokenizer", str(tokenizer),
        "--dataset-name", "random",
        "--random-input-len", str(load.tokens_in), "--random-output-len", str(load.tokens_out),
        "--num-prompts", str(load.requests), "--request-rate", str(load.rate or "inf"),
        "--seed", str(load.seed), "--ignore-eos", "--disable-tqdm",
        "--ready-check-timeout-sec", "0", "--percentile-metrics", "ttft,tpot,itl",
        "--save-result", "--result-dir", str(place.out), "--result-filename", each.file,
    ]  # fmt: skip


def _read(place: Place, each: Run) -> dict[str, Any]:
    path = place.out / each.file
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    about = {
        "server": each.server.name,
        "load": each.load.said,
        "round": each.round,
        "tokens_in": each.load.tokens_in,
        "tokens_out": each.load.tokens_out,
    }
    return about | {key: found[key] for key in KEPT if key in found}
