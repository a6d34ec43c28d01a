"""What the numbers mean, in plain words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from ds_engines.layers import LayerProfile
from ds_profile.stages import Stages

MUCH = 0.4
FULL = 0.8
GATEWAY = ("receive", "parse", "hand over", "hand back", "encode", "send")


@dataclass(frozen=True)
class Context:
    """What is known beside the traces; None where it is not. `batch_rows` is the mean."""

    batch_rows: float | None = None
    max_batch_size: int | None = None
    delay_us: int | None = None
    instances: int | None = None
    errors: int = 0


Said = tuple[float, str]
"""A sentence, and how much it matters: mostly the share of the time that it is about."""


def advise(stages: Stages, context: Context, layers: LayerProfile | None) -> list[str]:
    """Sentences, the most important first."""
    found = [
        *_errors(context),
        *_queue(stages, context),
        *_compute(stages, layers),
        *_gateway(stages),
        *_copies(stages),
        *_network(stages),
        *_spread(stages),
    ]
    if not found:
        return ["No stage stands out: the time is spread over all of them."]
    return [sentence for _, sentence in sorted(found, key=lambda said: -said[0])]


def _errors(context: Context) -> Iterator[Said]:
    if context.errors:
        yield (
            2.0,
            f"{context.errors} requests failed and are in no figure here; find out why before "
            "anything else.",
        )


def _queue(stages: Stages, context: Context) -> Iterator[Said]:
    share = stages.share("queue")
    if share < MUCH:
        return
    begin = f"{share:.0%} of the time is spent waiting in the queue"
    delay, rows, most = context.delay_us, context.batch_rows, context.max_batch_size
    if delay and rows and most and stages.mean("queue") < 2 * delay and rows < FULL * most:
        rest = (
            f", as max_queue_delay_microseconds ({delay}) asks for, yet batches have {rows:.1f} "
            f"rows of at most {most}: lower the delay."
        )
    elif rows and most and rows >= FULL * most:
        rest = (
            f" while batches are full ({rows:.1f} rows of at most {most}): raise max_batch_size, "
            "or add instances."
        )
    else:
        rest = (
            ": requests come faster than the engine takes them. Add instances "
            "(instance_group.count) where processors are idle, or raise max_batch_size; "
            "`ds-profile tune` tries both."
        )
    yield share, begin + rest


def _compute(stages: Stages, layers: LayerProfile | None) -> Iterator[Said]:
    share = stages.share("compute")
    if share >= MUCH:
        yield (
            share,
            f"{share:.0%} of the time is the model itself: only a quicker model (quantized, "
            "smaller), or quicker hardware, helps much.",
        )
    if layers is None or not layers.layers:
        return
    times: dict[str, float] = defaultdict(float)
    for layer in layers.layers:
        times[layer.op] += layer.us
    whole = sum(times.values())
    op, most = max(times.items(), key=lambda item: item[1])
    if whole and most / whole >= MUCH:
        yield (
            share * most / whole,
            f"{most / whole:.0%} of the time in the layers is {op}: to speed up the model, look "
            "there first.",
        )


def _gateway(stages: Stages) -> Iterator[Said]:
    share = stages.share(*GATEWAY)
    if share >= MUCH:
        yield (
            share,
            f"{share:.0%} of the time is the way through the gateway, not the model: send more "
            "rows in a request, send tensors as binary rather than JSON, or add --gateways where "
            "processors are idle.",
        )


def _copies(stages: Stages) -> Iterator[Said]:
    share = stages.share("join", "split")
    if share >= MUCH / 2:
        yield (
            share,
            f"{share:.0%} of the time is copying into and out of batches: the tensors are large "
            "for so quick a model. Ask for fewer outputs, or send smaller types (FP16, UINT8).",
        )


def _network(stages: Stages) -> Iterator[Said]:
    share = stages.share("network")
    if share >= MUCH:
        yield (
            share,
            f"{share:.0%} of the time is outside of the server's stages: the network, sockets that "
            "wait to be read, and the client. Where all are on one machine they share its "
            "processors.",
        )


def _spread(stages: Stages) -> Iterator[Said]:
    middle, _, slow = stages.total.percentiles
    if slow < 5 * middle:
        return
    common, rare = stages.typical[1].stages, stages.typical[-1].stages
    name = max(rare, key=lambda stage: rare[stage] - common.get(stage, 0.0))
    yield (
        0.1,
        f"The slowest hundredth takes {slow / middle:.0f} times as long as the middle: most of "
        f"the difference is in {name!r}.",
    )
