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
        return {name: self._one_to_model(name, array) for name, array in inputs.items()}

    def to_client(self, name: str, array: Array) -> Array:
        """An output as clients see it. Raises EngineFailure where the model gave another shape."""
        if name not in self._outputs:
            return array
        shape, own = self._outputs[name]
        fits = array.ndim == len(own) and all(
            known in (-1, size) for size, known in zip(array.shape, own, strict=True)
        )
        if not fits:
            raise EngineFailure(
                f"the model gave output {name!r} the shape {list(array.shape)}; the reshape of its "
                f"configuration says {list(own)}"
            )
        return _moved(array, own, shape)

    def _one_to_model(self, name: str, array: Array) -> Array:
        if name not in self._inputs:
            return array
        shape, own = self._inputs[name]
        return _moved(array, shape, own)


def _reshaped(tensors: Iterable[TensorSpec]) -> dict[str, tuple[Shape, Shape]]:
    """Name to the shape that clients see, and the model's own."""
    return {
        tensor.name: (tensor.shape, tensor.reshape)
        for tensor in tensors
        if tensor.reshape is not None
    }


def _moved(array: Array, source: Shape, target: Shape) -> Array:
    varying = iter([size for size, known in zip(array.shape, source, strict=True) if known == -1])
    return array.reshape([next(varying) if size == -1 else size for size in target])


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
