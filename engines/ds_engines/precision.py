"""The types of numbers that `--dtype` may ask an engine to compute in."""

from __future__ import annotations

from ds_engines.errors import ConfigError

AUTO, FP32, FP16, BF16 = "auto", "fp32", "fp16", "bf16"

_NAMES = {
    AUTO: AUTO,
    FP32: FP32,
    "float32": FP32,
    "float": FP32,
    FP16: FP16,
    "float16": FP16,
    "half": FP16,
    BF16: BF16,
    "bfloat16": BF16,
}

TOLERANCE = {FP16: 0.02, BF16: 0.06}
"""By how much of its largest value a row may differ in another batch: BF16 has 8 bits for it."""


def canonical(given: str) -> str:
    """`auto`, `fp32`, `fp16` or `bf16` for any name that they have. Raises ConfigError."""
    try:
        return _NAMES[given]
    except KeyError:
        raise ConfigError(f"--dtype is {given!r}; it must be {', '.join(_NAMES)}") from None
