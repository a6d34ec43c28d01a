"""One model over one GPU and over two, by tensor parallelism."""

from __future__ import annotations

from typing import Any

from loadtests.perf_analyzer import BenchmarkError
from loadtests.vllm import bench, shapes
from loadtests.vllm.bench import Load, Run
from loadtests.vllm.plan import Plan
from loadtests.vllm.servers import ds_serve, gpus

NAME = "llama"


def run(plan: Plan) -> dict[str, Any]:
    """Efficiency: the throughput over that of one GPU times the GPUs."""
    there = gpus()
    if there < 2 and not plan.rehearsal:
        raise BenchmarkError(f"it needs two GPUs, and this machine has {there}")
    sizes = [_measured(plan, count) for count in ((1,) if plan.rehearsal else (1, 2))]
    for each in sizes:
        share = each["output_throughput"] / sizes[0]["output_throughput"]
        each["efficiency"] = round(share / each["gpus"], 4)
    return {
        "model": f"Llama shape, {shapes.parameters(plan.large):.1f} billion parameters",
        "sizes": sizes,
    }


def _measured(plan: Plan, count: int) -> dict[str, Any]:
    model = shapes.llama(plan.large, plan.tokenizer, plan.place.out)
    flags = ["--load-format", "dummy", "--max-model-len", "2048"]
    ours = ("--tensor-parallel", str(count))
    with ds_serve(plan.place, NAME, model, ours, flags) as server:
        server.name = f"tensor-parallel-{count}"
        warm = Run(server, Load(plan.warm, 0, plan.tokens_in, plan.tokens_out, seed=99), -1)
        load = Load(plan.requests, 0, plan.tokens_in, plan.tokens_out)
        found = bench.run(plan.place, NAME, model, [warm, Run(server, load)])
    return found[-1] | {"gpus": count, "start_s": round(server.started, 1)}
