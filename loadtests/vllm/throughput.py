"""`vllm bench serve` against vLLM alone and against ds-serve, in turns, both up at one time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from loadtests.vllm import bench, shapes
from loadtests.vllm.bench import Load, Run
from loadtests.vllm.plan import Plan
from loadtests.vllm.servers import Running, bare, ds_serve

NAME = "llama"
LEAST_SHARE = 0.98
MOST_TTFT_MS = 3.0


def run(plan: Plan) -> dict[str, Any]:
    """Both servers share the GPU's memory; the one that is not asked uses none of its time."""
    model = shapes.llama(plan.size, plan.tokenizer, plan.place.out)
    flags = ["--load-format", "dummy", "--max-model-len", str(plan.longest)]
    if plan.place.device == "cuda":
        flags += ["--gpu-memory-utilization", str(plan.share)]
    with (
        bare(plan.place, NAME, model, flags) as alone,
        ds_serve(plan.place, NAME, model, (), flags) as ours,
    ):
        found = bench.run(plan.place, NAME, model, _runs(plan, alone, ours))
        return {
            "model": f"Llama shape, {shapes.parameters(plan.size):.1f} billion parameters",
            "gateways": plan.place.gateways,
            "start_s": {each.name: round(each.started, 1) for each in (alone, ours)},
            "runs": found,
            "ratios": ratios(found),
        }


def _runs(plan: Plan, alone: Running, ours: Running) -> list[Run]:
    loads = [Load(plan.requests, rate, plan.tokens_in, plan.tokens_out) for rate in plan.rates]
    warm = Load(plan.warm, 0, plan.tokens_in, plan.tokens_out, seed=99)
    runs = [Run(server, warm, -1) for server in (alone, ours)]
    for number in range(plan.rounds):
        # Who goes first changes from round to round; each run of a server has prompts of its own,
        # so that none finds them in its prefix cache.
        servers = (alone, ours) if number % 2 == 0 else (ours, alone)
        for index, load in enumerate(loads):
            fresh = replace(load, seed=number * len(loads) + index)
            runs += [Run(server, fresh, number) for server in servers]
    return runs


def ratios(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each load: our throughput over vLLM's, and by how much the first token comes later."""
    made = []
    counted = [each for each in found if each["round"] >= 0]
    for load in dict.fromkeys(each["load"] for each in counted):
        ours, alone = (
            [each for each in counted if each["load"] == load and each["server"] == server]
            for server in ("ds-serve", "vllm")
        )
        if not (ours and alone):
            continue
        share = _median(ours, "output_throughput") / _median(alone, "output_throughput")
        later = _median(ours, "median_ttft_ms") - _median(alone, "median_ttft_ms")
        made.append(
            {
                "load": load,
                "throughput_share": round(share, 4),
                "ttft_added_ms": round(later, 2),
                "tpot_added_ms": round(
                    _median(ours, "median_tpot_ms") - _median(alone, "median_tpot_ms"), 3
                ),
                "good": share >= LEAST_SHARE and (later <= MOST_TTFT_MS or load == "unlimited"),
            }
        )
    return made


def _median(runs: Sequence[dict[str, Any]], key: str) -> float:
    return median(each[key] for each in runs)
