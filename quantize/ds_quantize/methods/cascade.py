"""Two models as one."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from ds_quantize.method import Method


class Cascade(Method, frozen=True, tag="cascade"):
    """Ask a small model first, and this one for the rows that the small one is not sure of.

    `small`: an ONNX file or a model's folder, of a classifier with the same inputs and classes.
    `threshold`: the probability of its best class from which the small model's answer is taken;
    none: the lowest at which, on the calibration data, no more than `max_drop` of this model's
    accuracy (its own answers, where there are no labels) is lost.
    """

    handler: ClassVar[str] = "ds_quantize.cascade:cascade"
    needs_calibration: ClassVar[bool] = True

    small: str
    threshold: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_drop: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    @property
    def files(self) -> tuple[str, ...]:
        """The small model."""
        return (self.small,)
