"""`reshape` of a configuration: clients see one shape of a tensor, and the model has another."""

from __future__ import annotations

from collections.abc import Iterable

from ds_engines.base import Array, BatchEngine, Tensors
from ds_engines.errors import EngineFailure
from ds_engines.spec import ModelSpec, TensorSpec

Shape = tuple[int, ...]


class Reshapes:
    """Which tensors of a model have another shape for clients. Arrays are views where they can be.

    The configuration was checked: sizes that vary are the same in both shapes, in their order.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._inputs = _reshaped(spec.inputs)
        self._outputs = _reshaped(spec.outputs)

    def __bool__(self) -> bool:
        return bool(self._inputs or self._outputs)

    def to_model(self, inputs: Tensors) -> Tensors:
        """Inputs as the model has them."""
        if not self._inputs:
            return inputs
        return {
            name: array.reshape(self.input_shape(name, array.shape))
            for name, array in inputs.items()
        }

    def to_client(self, name: str, array: Array) -> Array:
        """An output as clients see it. Raises EngineFailure where the model gave another shape."""
        if name not in self._outputs:
            return array
        return array.reshape(self.output_shape(name, array.shape))

    def input_shape(self, name: str, shape: Shape) -> Shape:
        """The model's own shape of an input that clients give this one."""
        if name not in self._inputs:
            return shape
        seen, own = self._inputs[name]
        return _moved(shape, seen, own)

    def output_shape(self, name: str, shape: Shape) -> Shape:
        """The shape for clients of an output to which the model gave this one. Raises
        EngineFailure where its configuration says another.
        """
        if name not in self._outputs:
            return shape
        seen, own = self._outputs[name]
        if len(shape) != len(own) or any(
            known not in (-1, size) for size, known in zip(shape, own, strict=True)
        ):
            raise EngineFailure(
                f"the model gave output {name!r} the shape {list(shape)}; the reshape of its "
                f"configuration says {list(own)}"
            )
        return _moved(shape, own, seen)


def _reshaped(tensors: Iterable[TensorSpec]) -> dict[str, tuple[Shape, Shape]]:
    """Name to the shape that clients see, and the model's own."""
    return {
        tensor.name: (tensor.shape, tensor.reshape)
        for tensor in tensors
        if tensor.reshape is not None
    }


def _moved(shape: Shape, source: Shape, target: Shape) -> Shape:
    varying = iter([size for size, known in zip(shape, source, strict=True) if known == -1])
    return tuple(next(varying) if size == -1 else size for size in target)


class ReshapingEngine:
    """An engine as clients see it, around one that runs the model as it is."""

    def __init__(self, engine: BatchEngine) -> None:
        self.spec = engine.spec
        self._engine = engine
        self._reshapes = Reshapes(engine.spec)

    def run(self, batch: Tensors, outputs: tuple[str, ...] = ()) -> Tensors:
        results = self._engine.run(self._reshapes.to_model(batch), outputs)
        return {name: self._reshapes.to_client(name, array) for name, array in results.items()}

    def close(self) -> None:
        self._engine.close()
