"""An ensemble's `config.pbtxt` as a spec, and what can be wrong in it whatever its members are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from ds_engines import datatypes
from ds_engines.config.labels import labelled
from ds_engines.config.refusals import honoured, refuse_other
from ds_engines.config.tensors import check_reshape
from ds_engines.errors import ConfigError
from ds_engines.spec import BatchPolicy, ModelSpec, Step, TensorSpec, VersionPolicy
from ds_proto.model_config_pb2 import (
    DataType,
    ModelConfig,
    ModelEnsembling,
    ModelInput,
    ModelOutput,
)
from ds_serve.ensemble.plan import ENSEMBLE, at, cycle

_HONOURED = honoured(
    "name", "platform", "backend", "version_policy", "max_batch_size", "input", "output",
    "ensemble_scheduling", "parameters",
)  # fmt: skip
_STEP = honoured("model_name", "model_version", "input_map", "output_map")
_TENSOR = honoured("name", "data_type", "dims", "label_filename", "format", "optional", "reshape")


def read(config: ModelConfig, name: str, version: str, path: Path, folder: Path) -> ModelSpec:
    """The ensemble that the file `path` describes; `folder`: where the files lie that it names.

    Raises ConfigError that names the file, the step and the tensor.
    """
    source = str(path)
    refuse_other(config, source, "", _HONOURED)
    _check_kind(config, source)
    batch = max(0, config.max_batch_size)
    policy = config.version_policy
    spec = ModelSpec(
        name=name,
        engine=ENSEMBLE,
        artifact=path,
        version=version,
        versions=VersionPolicy(
            latest=policy.latest.num_versions or 1,
            every=policy.HasField("all"),
            named=tuple(policy.specific.versions),
        ),
        inputs=_tensors(config.input, batch, source, "input"),
        outputs=_tensors(config.output, batch, source, "output"),
        batch=BatchPolicy(max_batch_size=batch),
        platform=ENSEMBLE,
        parameters={key: value.string_value for key, value in config.parameters.items()},
        steps=tuple(
            _step(name, step, source, index)
            for index, step in enumerate(config.ensemble_scheduling.step)
        ),
    )
    _check_tensors(spec, source)
    outputs = labelled(spec, config.output, folder, source)
    return msgspec.structs.replace(spec, outputs=outputs)


def _check_kind(config: ModelConfig, source: str) -> None:
    for field in ("platform", "backend"):
        if getattr(config, field) not in ("", ENSEMBLE):
            raise ConfigError(
                f"{source}: {field} is {getattr(config, field)!r}, but the model is an ensemble"
            )
    if not config.ensemble_scheduling.step:
        raise ConfigError(f"{source}: ensemble_scheduling has no step; an ensemble needs one")


def _tensors(
    given: Iterable[ModelInput | ModelOutput], batch: int, source: str, what: str
) -> tuple[TensorSpec, ...]:
    found: dict[str, TensorSpec] = {}
    for tensor in given:
        where = f"{source}: {what} {tensor.name!r}"
        refuse_other(tensor, source, f"{what}.", _TENSOR)
        if not tensor.name or tensor.name in found:
            raise ConfigError(f"{where} {'is there twice' if tensor.name else 'has no name'}")
        found[tensor.name] = _tensor(tensor, batch, where)
    if not found:
        raise ConfigError(
            f"{source}: the ensemble has no {what}: its inputs and outputs are those that its "
            "configuration names"
        )
    return tuple(found.values())


def _tensor(tensor: ModelInput | ModelOutput, batch: int, where: str) -> TensorSpec:
    kind = DataType.Name(tensor.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
    if kind not in datatypes.DATATYPES:
        raise ConfigError(f"{where} needs a data_type, such as TYPE_FP32")
    dims = tuple(tensor.dims)
    if not all(size == -1 or size > 0 for size in dims) or not (dims or batch):
        raise ConfigError(
            f"{where}: dims are {list(dims)}; they must be sizes above 0, or -1 for any size"
        )
    optional = isinstance(tensor, ModelInput) and tensor.optional
    spec = TensorSpec(
        tensor.name, kind, (-1, *dims) if batch else dims, 0 if batch else None, optional
    )
    if tensor.HasField("reshape"):
        own = tuple(tensor.reshape.shape)
        check_reshape(dims, own, where)
        spec = msgspec.structs.replace(spec, reshape=(-1, *own) if batch else own)
    if isinstance(tensor, ModelInput) and tensor.format:
        name = ModelInput.Format.Name(tensor.format)
        spec = msgspec.structs.replace(spec, format=name)
    return spec


def _step(name: str, given: ModelEnsembling.Step, source: str, index: int) -> Step:
    where = f"{source}: step {index + 1}"
    refuse_other(given, source, "ensemble_scheduling.step.", _STEP)
    if not given.model_name:
        raise ConfigError(f"{where} has no model_name")
    where += f" (model {given.model_name!r})"
    if given.model_name == name:
        raise ConfigError(f"{where}: the ensemble contains itself")
    for field in ("input_map", "output_map"):
        pairs = getattr(given, field)
        if not pairs:
            raise ConfigError(f"{where} has no {field}")
        for key, value in pairs.items():
            if not key or not value:
                raise ConfigError(f"{where}: {field} has an empty name: {key!r} to {value!r}")
    return Step(
        model=given.model_name,
        version=str(given.model_version) if given.model_version > 0 else "",
        inputs=tuple(sorted(given.input_map.items())),
        outputs=tuple(sorted(given.output_map.items())),
    )


def _check_tensors(spec: ModelSpec, source: str) -> None:
    """Each tensor has one maker, and no step waits for itself."""
    made = {tensor.name: "the request, as an input" for tensor in spec.inputs}
    for index, step in enumerate(spec.steps):
        for output, tensor in step.outputs:
            if tensor in made:
                raise ConfigError(
                    f"{source}: {at(spec, index)}: output_map gives {output!r} the name "
                    f"{tensor!r}, but that tensor is made by {made[tensor]}"
                )
            made[tensor] = at(spec, index)
    for index, step in enumerate(spec.steps):
        for wanted, tensor in step.inputs:
            if tensor not in made:
                raise ConfigError(
                    f"{source}: {at(spec, index)}: input_map gives the input {wanted!r} the "
                    f"tensor {tensor!r}, which nobody makes; there are: {', '.join(made)}"
                )
    _check_outputs(spec, source)
    if circle := cycle(spec.steps):
        names = " -> ".join(at(spec, index) for index in [*circle, circle[0]])
        tensor = _between(spec, circle[0], circle[1 % len(circle)])
        raise ConfigError(
            f"{source}: steps wait for each other in a circle: {names}; the first makes the "
            f"tensor {tensor!r} that the second needs"
        )


def _between(spec: ModelSpec, maker: int, reader: int) -> str:
    made = {tensor for _, tensor in spec.steps[maker].outputs}
    return next(tensor for _, tensor in spec.steps[reader].inputs if tensor in made)


def _check_outputs(spec: ModelSpec, source: str) -> None:
    made = [tensor for step in spec.steps for _, tensor in step.outputs]
    for output in spec.outputs:
        if output.name not in made:
            raise ConfigError(
                f"{source}: output {output.name!r} is made by no step; the steps make: "
                f"{', '.join(made)}"
            )
