"""Triton's model configuration, `config.pbtxt`: read it, lay it over a spec, write it for a client.

What a file leaves out is completed from the model file. What it sets and ds-serve does not honour
is refused by name. Beyond Triton's fields, the parameter `batch_axis.<tensor>` names the axis along
which requests are joined (`none`: all requests of a batch share the tensor).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ds_engines.config import batching, sequences
from ds_engines.config.axes import axes, batched, with_axes
from ds_engines.config.labels import labelled
from ds_engines.config.reading import STATED_ZERO, read
from ds_engines.config.refusals import honoured, refuse_optimization, refuse_other
from ds_engines.config.tensors import declared, overlaid
from ds_engines.config.warmups import warm_up
from ds_engines.config_message import PLATFORMS, describe
from ds_engines.errors import ConfigError
from ds_engines.spec import BatchPolicy, ModelSpec, VersionPolicy
from ds_proto.model_config_pb2 import ModelConfig

__all__ = ["STATED_ZERO", "accelerated", "apply", "describe", "described", "foretold", "read"]

_ONNXRUNTIME = "onnxruntime."
ACCELERATOR = _ONNXRUNTIME + "accelerator"
"""The parameter that has the name of an accelerator, which Triton's format has elsewhere."""

_HONOURED = honoured(
    "name",
    "platform",
    "backend",
    "default_model_filename",
    "version_policy",
    "max_batch_size",
    "input",
    "output",
    "dynamic_batching",
    "instance_group",
    "parameters",
    "sequence_batching",
    "ensemble_scheduling",
    "model_warmup",
    "optimization",
    "response_cache",
)


def apply(
    spec: ModelSpec, config: ModelConfig, source: str, folder: Path | None = None
) -> ModelSpec:
    """`spec`, which the model file has completed, with what `config` says laid over it.

    `folder`: where the files lie that it names; that of the file `source` where none is given.

    A model whose rows could not be proven independent is batched where `max_batch_size` is above
    0: the operator has said so. Raises ConfigError naming `source` and the field.
    """
    folder = folder or Path(source).parent
    refuse_other(config, source, "", _HONOURED)
    refuse_optimization(config, source)
    _check_identity(spec, config, source)
    named = axes(spec, config.parameters, source)
    spec = batched(with_axes(spec, named), config, named, source)
    spec = msgspec.structs.replace(
        spec,
        inputs=overlaid(spec, spec.inputs, config.input, source, "input"),
        outputs=overlaid(spec, spec.outputs, config.output, source, "output"),
        defaulted=(),
        slots=batching.slots(spec, config.instance_group, source) or spec.slots,
        versions=_versions(config),
    )
    spec = msgspec.structs.replace(spec, outputs=labelled(spec, config.output, folder, source))
    if config.HasField("dynamic_batching"):
        policy = batching.policy(spec.batch, config.dynamic_batching, source)
        spec = msgspec.structs.replace(spec, batch=policy)
    spec = _with_sequences(spec, config, folder, source)
    spec = msgspec.structs.replace(spec, cached=_cached(spec, config, source))
    warm_ups = tuple(warm_up(spec, given, folder, source) for given in config.model_warmup)
    return msgspec.structs.replace(spec, warm_ups=warm_ups)


def foretold(spec: ModelSpec, config: ModelConfig, source: str) -> ModelSpec:
    """What an engine that builds a model has to know before: batches, slots and parameters."""
    batch = _batches(spec, config)
    given = {name: said.string_value for name, said in config.parameters.items()}
    slots = batching.slots(spec, config.instance_group, source) or spec.slots
    return msgspec.structs.replace(spec, batch=batch, slots=slots, parameters=given)


def _batches(spec: ModelSpec, config: ModelConfig) -> BatchPolicy:
    most = config.max_batch_size or spec.batch.max_batch_size
    sizes = tuple(config.dynamic_batching.preferred_batch_size)
    return msgspec.structs.replace(spec.batch, max_batch_size=most, preferred_sizes=sizes)


def accelerated(spec: ModelSpec, config: ModelConfig) -> ModelSpec:
    """What ONNX Runtime has to know before: batches, its own parameters, and the accelerator that
    it is to use, the GPU's before the CPU's.
    """
    given = {
        name: said.string_value
        for name, said in config.parameters.items()
        if name.startswith(_ONNXRUNTIME)
    }
    wanted = config.optimization.execution_accelerators
    named = (*wanted.gpu_execution_accelerator, *wanted.cpu_execution_accelerator)
    if named:
        given[ACCELERATOR] = named[0].name
    return msgspec.structs.replace(
        spec, batch=_batches(spec, config), parameters=spec.parameters | given
    )


def described(spec: ModelSpec, config: ModelConfig, source: str) -> ModelSpec:
    """The spec of a model whose file does not say what it takes and gives, from its configuration.

    Raises ConfigError naming `source` and the field.
    """
    size = max(0, config.max_batch_size)
    return msgspec.structs.replace(
        spec,
        inputs=declared(config.input, size, f"{source}: input", brain=True),
        outputs=declared(config.output, size, f"{source}: output", brain=True),
        batch=msgspec.structs.replace(spec.batch, max_batch_size=size),
        slots=sum(group.count or 1 for group in config.instance_group) or spec.slots,
    )


def _versions(config: ModelConfig) -> VersionPolicy:
    policy = config.version_policy
    return VersionPolicy(
        latest=policy.latest.num_versions or 1,
        every=policy.HasField("all"),
        named=tuple(policy.specific.versions),
    )


def _with_sequences(spec: ModelSpec, config: ModelConfig, folder: Path, source: str) -> ModelSpec:
    if not config.HasField("sequence_batching"):
        return spec
    policy = sequences.policy(spec, config, folder, source)
    ordered = config.sequence_batching.oldest.preserve_ordering
    batch = msgspec.structs.replace(spec.batch, preserve_ordering=ordered)
    return msgspec.structs.replace(spec, batch=batch, sequence=policy)


def _cached(spec: ModelSpec, config: ModelConfig, source: str) -> bool:
    if not config.response_cache.enable:
        return False
    if spec.sequence is not None:
        raise ConfigError(
            f"{source}: response_cache and sequence_batching exclude each other: a sequence's "
            "answers depend on what came before"
        )
    return True


ALIKE = {
    "openvino": {"backend": ("tensorflow",), "platform": ("tensorflow_savedmodel",)},
    "torch": {"backend": ("pytorch",), "platform": ("pytorch_libtorch",)},
}
"""What Triton calls the engine of files that ours runs too."""


def _check_identity(spec: ModelSpec, config: ModelConfig, source: str) -> None:
    if config.HasField("ensemble_scheduling"):
        raise ConfigError(
            f'{source}: ensemble_scheduling is set, but the platform is not "ensemble", which has '
            "no model file"
        )
    expected = {
        "name": spec.name,
        "backend": spec.engine,
        "platform": PLATFORMS.get(spec.engine, spec.platform),
        "default_model_filename": spec.artifact.name,
    }
    for field, value in expected.items():
        given = getattr(config, field)
        if given and given != value and given not in ALIKE.get(spec.engine, {}).get(field, ()):
            raise ConfigError(f"{source}: {field} is {given!r}, but this model's is {value!r}")
