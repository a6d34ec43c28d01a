"""What may be set, to which values, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from google.protobuf import text_format

from ds_engines import config_pbtxt
from ds_profile.server import Model
from ds_proto.model_config_pb2 import ModelConfig, ModelInstanceGroup
from ds_serve.models import CONFIG, ModelSource
from ds_serve.settings import Settings
from ds_serve.supervisor import cpus

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DELAYS = (0, 100, 250, 500, 1000, 2000, 5000, 10_000, 20_000)
MOST_GATEWAYS = 4


@dataclass(frozen=True)
class Candidate:
    """One configuration. Of a model that is not batched, the first two mean nothing."""

    max_batch_size: int
    delay_us: int
    instances: int
    gateways: int

    def __str__(self) -> str:
        return (
            f"max_batch_size {self.max_batch_size}, delay {self.delay_us} us, "
            f"instances {self.instances}, gateways {self.gateways}"
        )

    def flags(self) -> list[str]:
        """What config.pbtxt cannot hold."""
        return ["--gateways", str(self.gateways)]


@dataclass(frozen=True)
class Space:
    """The values of each setting, ascending, the default's among them."""

    default: Candidate
    batched: bool
    values: Mapping[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        product = 1
        for values in self.values.values():
            product *= len(values)
        return product

    def candidate(self, places: Mapping[str, int]) -> Candidate:
        """The one whose settings have the values at these places."""
        chosen = {name: values[places[name]] for name, values in self.values.items()}
        return Candidate(**{**asdict(self.default), **chosen})

    def places(self, candidate: Candidate) -> dict[str, int]:
        return {
            name: values.index(getattr(candidate, name)) for name, values in self.values.items()
        }


def default_of(model: Model, base: ModelConfig | None) -> Candidate:
    """What ds-serve does unless it is told otherwise, with the model's own config.pbtxt."""
    stated = base.max_batch_size if base is not None else 0
    size = model.config.max_batch_size or max(stated, 0) or Settings().max_batch_size
    return Candidate(
        max_batch_size=size if model.batched else 0,
        delay_us=model.config.dynamic_batching.max_queue_delay_microseconds,
        instances=sum(group.count for group in model.config.instance_group) or 1,
        gateways=cpus.gateways(Settings().gateways),
    )


def space_of(
    model: Model,
    base: ModelConfig | None,
    *,
    latency_ms: float,
    rows_in_flight: int,
    most_instances: int,
    most_gateways: int,
) -> Space:
    """`rows_in_flight`: larger batches cannot come together; 0: not known."""
    default = default_of(model, base)
    values = {
        "instances": _with(range(1, most_instances + 1), default.instances),
        "gateways": _with(range(1, most_gateways + 1), default.gateways),
    }
    if model.batched:
        useful = [b for b in BATCHES if not rows_in_flight or b < 2 * rows_in_flight]
        values["max_batch_size"] = _with(useful, default.max_batch_size)
        delays = [delay for delay in DELAYS if delay <= latency_ms * 1000 / 2]
        values["delay_us"] = _with(delays, default.delay_us)
    return Space(default, model.batched, values)


def _with(values: range | list[int], default: int) -> tuple[int, ...]:
    return tuple(sorted({*values, default}))


def base_of(source: ModelSource) -> ModelConfig | None:
    """The configuration that lies beside the model. Raises ConfigError."""
    return config_pbtxt.read(source.config) if source.config is not None else None


def written(base: ModelConfig | None, candidate: Candidate, batched: bool) -> str:
    """The candidate as config.pbtxt, with all else that `base` says."""
    config = ModelConfig()
    if base is not None:
        config.CopyFrom(base)
    unbatched = config.max_batch_size == config_pbtxt.STATED_ZERO
    if unbatched:
        config.max_batch_size = 0
    if batched:
        config.max_batch_size = candidate.max_batch_size
        batching = config.dynamic_batching
        batching.max_queue_delay_microseconds = candidate.delay_us
        preferred = [n for n in batching.preferred_batch_size if n <= candidate.max_batch_size]
        del batching.preferred_batch_size[:]
        batching.preferred_batch_size.extend(preferred)
        batching.SetInParent()
    kinds = {group.kind for group in config.instance_group}
    del config.instance_group[:]
    kind = kinds.pop() if kinds else ModelInstanceGroup.KIND_AUTO
    config.instance_group.add(count=candidate.instances, kind=kind)
    return ("max_batch_size: 0\n" if unbatched else "") + text_format.MessageToString(config)


def laid_out(source: ModelSource, config: str | None, folder: Path) -> str:
    """The model as an argument of `--model`, with this config.pbtxt instead of its own.

    `folder` gets links to the model's files; None leaves the model as it is.
    """
    if config is None:
        return f"{source.name}={source.artifact}"
    home = folder / source.version
    home.mkdir(parents=True)
    for file in source.artifact.parent.iterdir():
        if file.name != CONFIG:
            (home / file.name).symlink_to(file.absolute())
    (folder / CONFIG).write_text(config, encoding="utf-8")
    return f"{source.name}={home / source.artifact.name}"
