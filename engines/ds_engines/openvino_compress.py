"""Weights of 8 and of 4 bits for a language model as an OpenVINO folder, without any data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ds_engines.errors import ConfigError

GROUP = 64
"""Numbers of four bits that share a scale; fewer where a matrix's rows do not divide by it."""


def compress(folder: Path, weights: str, note: Callable[[str, float], None]) -> None:
    """Make the weights of an OpenVINO folder smaller, in place. Raises ConfigError."""
    try:
        import nncf  # noqa: PLC0415
        import openvino  # type: ignore[import-untyped,unused-ignore] # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"--quantization {weights} needs {error.name}: pip install 'ds-serve[convert]'"
        ) from error
    note(f"weights to {weights}", 0.9)
    modes = nncf.CompressWeightsMode
    model = openvino.Core().read_model(folder / "openvino_model.xml")
    if weights == "int8":
        made = nncf.compress_weights(model, mode=modes.INT8_ASYM)
    else:
        made = nncf.compress_weights(
            model,
            mode=modes.INT4_SYM,
            group_size=GROUP,
            advanced_parameters=nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
            ),
        )
    openvino.save_model(made, folder / "small.xml", compress_to_fp16=False)
    del model, made  # it maps the file that is replaced
    for suffix in (".xml", ".bin"):
        (folder / f"small{suffix}").replace(folder / f"openvino_model{suffix}")
