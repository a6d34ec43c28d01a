"""Where ds-serve looks which methods there are."""

from typing import Literal

QuantizationMethods = Literal["fp8", "compressed-tensors"]
