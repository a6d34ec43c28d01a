"""`ds-profile run`: a server with traces, load on it, and what became of the time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ds_client import ClientError
from ds_engines.base import EngineOptions
from ds_engines.layers import LayerProfile, profile
from ds_engines.spec import BatchPolicy, ModelSpec
from ds_profile import inputs, traces
from ds_profile.advice import Context, advise
from ds_profile.errors import ProfileError
from ds_profile.inputs import Inputs, Wish
from ds_profile.load import Measured, Protocol, first_that_works, to_model
from ds_profile.page import Report
from ds_profile.server import Model, Server, describe, ds_serve_flags, executed, running
from ds_profile.stages import summarise
from ds_serve.models import ModelSource
from ds_serve.supervisor import cpus

WARM_UP = 0.5
LAYER_SECONDS = 2.0


@dataclass(frozen=True)
class Plan:
    """`flags` are the server's; one of `trace_rate` requests is traced."""

    source: ModelSource
    protocol: Protocol = "http"
    concurrency: int = 16
    seconds: float = 10.0
    wish: Wish = field(default_factory=Wish)
    trace_rate: int = 1
    trace_file: Path | None = None
    layers: bool = True
    flags: Sequence[str] = ()


@dataclass(frozen=True)
class Run:
    """What was measured under load."""

    model: Model
    arrays: Inputs
    measured: Measured
    batch_rows: float
    traces: list[traces.Trace]


async def run(plan: Plan) -> Report:
    """Raises ProfileError, and what loading the model for its layers raises."""
    with tempfile.TemporaryDirectory(prefix="ds-profile-") as folder:
        file = plan.trace_file or Path(folder, "trace.json")
        flags = [*ds_serve_flags(file, plan.trace_rate), *plan.flags]
        with running([argument_of(plan.source)], flags) as server:
            model, arrays, measured, batch_rows = await _under_load(plan, server)
        done = Run(model, arrays, measured, batch_rows, traces.read([file]))
    return _report(plan, done)


def argument_of(source: ModelSource) -> str:
    return f"{source.name}={source.artifact}"


async def _under_load(plan: Plan, server: Server) -> tuple[Model, Inputs, Measured, float]:
    model = await describe(server, plan.source.name)
    arrays = await working_inputs(server, model, plan.wish, plan.protocol)
    async with to_model(
        server, model.name, model.inputs, arrays, plan.protocol, plan.concurrency
    ) as load:
        await load.run(plan.concurrency, WARM_UP)
        rows, executions = await executed(server, model.name)
        measured = await load.run(plan.concurrency, plan.seconds)
        rows_then, executions_then = await executed(server, model.name)
    require_answers(measured)
    batch = (rows_then - rows) / max(1, executions_then - executions)
    return model, arrays, measured, batch


def require_answers(measured: Measured) -> None:
    """Raises ProfileError where no request was answered."""
    if not measured.waits:
        why = measured.errors[0] if measured.errors else "none ended in time; give more --seconds"
        raise ProfileError(f"no request was answered: {why}")


async def working_inputs(server: Server, model: Model, wish: Wish, protocol: Protocol) -> Inputs:
    """The first request that the model answers. Raises ProfileError with the last refusal."""
    refusal: ProfileError | None = None
    for arrays in inputs.candidates(model.inputs, wish):
        try:
            async with to_model(server, model.name, model.inputs, arrays, protocol, 1) as load:
                await first_that_works(load, model.name)
        except ProfileError as error:
            refusal = error
        except ClientError as error:
            refusal = ProfileError(f"the request for {model.name!r} cannot be made: {error}")
        else:
            return arrays
    hint = "" if wish.file else "; say --shape NAME=1x16, or give real data with --inputs FILE.npz"
    raise ProfileError(f"{refusal}{hint}")


def _report(plan: Plan, done: Run) -> Report:
    stages = summarise(done.traces, done.measured.waits)
    if not stages:
        raise ProfileError(
            f"none of {len(done.measured.waits)} requests was traced; give a lower --trace-rate "
            f"than {plan.trace_rate}, or more --seconds"
        )
    rows = max(1, round(done.batch_rows))
    layers = _layers(plan, done, rows) if plan.layers else None
    config = done.model.config
    context = Context(
        batch_rows=done.batch_rows if done.model.batched else None,
        max_batch_size=config.max_batch_size or None,
        delay_us=config.dynamic_batching.max_queue_delay_microseconds,
        errors=len(done.measured.errors),
    )
    return Report(
        title=f"ds-profile: {plan.source.name}",
        stages=stages,
        advice=advise(stages[0], context, layers),
        facts=_facts(plan, done),
        layers=layers,
        batch=rows,
    )


def _facts(plan: Plan, done: Run) -> dict[str, str]:
    measured = done.measured
    return {
        "requests a second": f"{measured.rate:,.0f}",
        "p50 seen by the client": f"{measured.latency_ms(50):.2f} ms",
        "p99 seen by the client": f"{measured.latency_ms(99):.2f} ms",
        "requests in flight": f"{plan.concurrency}, {plan.protocol}",
        "rows in a batch": f"{done.batch_rows:.1f}",
        "failed": f"{len(measured.errors)}",
        "processors": f"{os.cpu_count()}",
    }


def _layers(plan: Plan, done: Run, rows: int) -> LayerProfile:
    spec = ModelSpec(
        name=plan.source.name,
        engine=plan.source.engine,
        artifact=plan.source.artifact,
        version=plan.source.version,
        batch=BatchPolicy(max_batch_size=rows),
    )
    batch = inputs.stacked(done.arrays, done.model.inputs, rows)
    # Engines of GPUs choose theirs; those of CPUs have no other.
    options = EngineOptions(threads=cpus.share(cpus.available(), 1), device="auto")
    return profile(spec, options, batch, min(LAYER_SECONDS, plan.seconds))
