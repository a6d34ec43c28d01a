"""Data in the layout that a model wants, each row checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ds_engines.base import Array
from ds_engines.datatypes import DATATYPES, float32_to_bf16
from ds_engines.spec import ModelSpec, TensorSpec
from ds_quantize.data import Batch, Data
from ds_quantize.errors import DataError
from ds_quantize.loaders.rows import Row, RowData, grouped, labels

KINDS = {"f": "floating-point numbers", "i": "integers", "u": "integers", "b": "booleans"}
PASS = 64


def fitted(data: Data, spec: ModelSpec, finite: bool) -> Fitted:
    """See ds_quantize.data.fit."""
    if isinstance(data, Fitted):
        data = data.given
    if not isinstance(data, RowData):
        raise DataError(f"{data.source} is not data that ds_quantize.data.load has read")
    found = Fitted(data, spec, finite)
    found.check()
    return found


@dataclass
class Fitted:
    """`given` as the model wants it."""

    given: RowData
    spec: ModelSpec
    finite: bool
    source: str = field(init=False)
    digest: str = field(init=False)
    rows: int = field(init=False)
    labelled: bool = field(init=False)

    def __post_init__(self) -> None:
        self.source, self.digest = self.given.source, self.given.digest
        self.rows, self.labelled = self.given.rows, self.given.labelled

    def batches(self, size: int) -> Iterator[Batch]:
        """Rows along the model's batch axes. A model that has none gets as many rows in a batch as
        its first axis is long, or one, whatever `size` says.
        """
        rows = (self._row(row) for row in self.given.each())
        for group in grouped(rows, self.per_call or max(1, size), self._kind):
            if self.per_call and len(group) != self.per_call:
                raise DataError(
                    f"{self.source} has {self.rows} rows; {self.spec.name} takes "
                    f"{self.per_call} at a time, so they must be a multiple of that"
                )
            inputs = {tensor.name: self._joined(tensor, group) for tensor in self.spec.inputs}
            yield Batch(inputs, labels(group))

    def check(self) -> None:
        """Raises DataError for the first row that the model does not take."""
        for _ in self.batches(PASS):
            pass

    @cached_property
    def batched(self) -> bool:
        return any(tensor.batch_axis is not None for tensor in self.spec.inputs)

    @cached_property
    def whole(self) -> bool:
        """Whether a row is all that a model without a batch axis takes in one call."""
        row = next(self.given.each()).inputs
        names = self._names(row)
        return not self.batched and any(
            row[names[t.name]].ndim >= len(t.shape) for t in self.spec.inputs if t.shape
        )

    @cached_property
    def per_call(self) -> int:
        """Rows that each call must have; 0 where any number will do."""
        if self.batched:
            return 0
        if self.whole:
            return 1
        return max(1, *(tensor.shape[0] for tensor in self.spec.inputs if tensor.shape))

    def _names(self, row: dict[str, Array]) -> dict[str, str]:
        """The model's names to the data's, which are the same, but for arrays without a name."""
        wanted = [tensor.name for tensor in self.spec.inputs]
        if list(row) == ["arr_0"] and len(wanted) == 1:
            return {wanted[0]: "arr_0"}
        missing = [name for name in wanted if name not in row]
        unknown = [name for name in row if name not in wanted]
        if missing or unknown:
            problem = f"no {missing[0]!r}" if missing else f"{unknown[0]!r}"
            raise DataError(
                f"{self.source} has {problem}: its arrays are {', '.join(map(repr, row))}, and the "
                f"inputs of {self.spec.name} are {', '.join(map(repr, wanted))}"
            )
        return {name: name for name in wanted}

    def _row(self, row: Row) -> Row:
        names = self._names(row.inputs)
        arrays = {}
        for tensor in self.spec.inputs:
            where = f"{self.source}: {row.where}: input {tensor.name!r}"
            array = converted(row.inputs[names[tensor.name]], tensor.datatype, where)
            self._check_shape(array, tensor, where)
            if self.finite and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DataError(f"{where} {_not_finite(array)}; data must be finite")
            arrays[tensor.name] = array
        return Row(arrays, row.label, row.where)

    def _check_shape(self, array: Array, tensor: TensorSpec, where: str) -> None:
        wanted = self._row_shape(tensor)
        if len(wanted) == array.ndim and all(
            size in (-1, has) for size, has in zip(wanted, array.shape, strict=True)
        ):
            return
        raise DataError(
            f"{where} has shape {list(array.shape)} a row; {self.spec.name} wants "
            f"{[size if size >= 0 else 'any' for size in wanted]}"
        )

    def _row_shape(self, tensor: TensorSpec) -> tuple[int, ...]:
        axis = tensor.batch_axis
        if axis is None:
            return tensor.shape if self.batched or self.whole else tensor.shape[1:]
        return tensor.shape[:axis] + tensor.shape[axis + 1 :]

    def _common(self, tensor: TensorSpec) -> bool:
        """Whether all rows of a batch share this input."""
        return self.whole or not tensor.shape or (self.batched and tensor.batch_axis is None)

    def _kind(self, row: Row) -> object:
        return [
            (array.shape, array.tobytes() if self._common(tensor) and self.batched else None)
            for tensor, array in zip(self.spec.inputs, row.inputs.values(), strict=True)
        ]

    def _joined(self, tensor: TensorSpec, group: list[Row]) -> Array:
        arrays = [row.inputs[tensor.name] for row in group]
        if self._common(tensor):
            return arrays[0]
        return np.stack(arrays, axis=tensor.batch_axis or 0)


def converted(array: Array, datatype: str, where: str) -> Array:
    """The array in that datatype, where no more than precision is lost. Raises DataError."""
    wanted = DATATYPES[datatype].dtype
    if datatype == "BYTES":
        if array.dtype == np.object_:
            return array
        raise DataError(f"{where} holds {array.dtype}; the model wants texts")
    if datatype == "BF16" and array.dtype.kind == "f":
        return float32_to_bf16(array.astype(np.float32))
    if array.dtype == wanted:
        return array
    if KINDS.get(array.dtype.kind) != KINDS[wanted.kind]:
        raise DataError(
            f"{where} holds {array.dtype}, but the model wants {datatype}: convert the data as "
            "the model's users have to"
        )
    if wanted.kind in "iu" and array.size:
        limits = np.iinfo(wanted)
        if array.min() < limits.min or array.max() > limits.max:
            raise DataError(f"{where} holds integers that do not fit into {datatype}")
    return array.astype(wanted)


def _not_finite(array: Array) -> str:
    bad = np.argwhere(~np.isfinite(array))
    place = tuple(int(i) for i in bad[0])
    return f"holds {array[place]} at {list(place)}" if place else f"is {array[()]}"
