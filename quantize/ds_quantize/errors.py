"""What can go wrong in the pipeline; each is told in one line, without a traceback."""

from __future__ import annotations

from ds_engines.errors import ServeError


class QuantizeError(ServeError):
    """Base: the message names the file, layer or field, and what would be right."""


class RecipeError(QuantizeError):
    """A recipe says something wrong."""


class DataError(QuantizeError):
    """Calibration or evaluation data are missing, of the wrong shape, or not finite."""


class SourceError(QuantizeError):
    """The model to be quantized cannot be read."""


class MethodError(QuantizeError):
    """A method cannot be applied to this model; names the layer."""


class GateError(QuantizeError):
    """The result is not good enough: nothing is promoted."""


class MissingExtra(QuantizeError):
    """A library is not installed; names the extra that has it."""
