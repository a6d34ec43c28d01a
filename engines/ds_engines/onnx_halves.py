"""ONNX files with FP16 in place of FP32, for engines that compute in the types of a file."""

from __future__ import annotations

from pathlib import Path

from ds_engines.errors import LoadError, Unsupported


def halved(file: Path) -> bytes:
    """The model in FP16, but for its inputs and outputs, and for operators that FP16 has not.

    Raises Unsupported where the package `onnx` is missing, which the serving install has not, and
    LoadError for a file that cannot be converted.
    """
    try:
        import onnx  # noqa: PLC0415
        from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415
    except ImportError as error:
        raise Unsupported(
            f"--dtype fp16: to turn {file.name} into FP16 takes the package {error.name}: pip "
            f"install {error.name}; or give a file of FP16"
        ) from error
    try:
        made: bytes = convert_float_to_float16(
            onnx.load(file), keep_io_types=True
        ).SerializeToString()
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise LoadError(f"--dtype fp16: {file} cannot be turned into FP16: {said}") from error
    return made
