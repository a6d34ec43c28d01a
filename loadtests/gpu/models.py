"""ResNet-50 in three kinds of numbers, pictures, and what the CPU answers to them.

For PyTorch it is a program of other random weights, whose FP16 is autocast's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.gpu import minilm

KINDS = ("tf32", "fp16", "int8")
"""FP32 is TF32 on a GPU that has it."""

PICTURES, CALIBRATION = 32, 32

LARGEST = 128
"""Pictures at a time that the program for PyTorch takes at most."""

TORCH, INPUT = "torch", "picture"

Pictures = npt.NDArray[np.float32]
Batch = dict[str, npt.NDArray[Any]]


def path_of(folder: Path, kind: str, engine: str = "") -> Path:
    return folder / ("resnet50.pt2" if engine == TORCH else f"resnet50_{kind}.onnx")


def kinds_of(engine: str) -> tuple[str, ...]:
    """PyTorch has no INT8 of ours."""
    return ("tf32", "fp16") if engine == TORCH else KINDS


def dtype_of(kind: str, engine: str) -> str:
    """What `--dtype` has to say: files have their own types, and programs one."""
    return "fp16" if engine == TORCH and kind == "fp16" else "auto"


def make(folder: Path) -> None:
    """Write the three files, and pictures with their answers by ONNX Runtime on the CPU."""
    make_plain(folder)
    name, found = pictures(folder)
    _quantize(folder, name, _made_pictures()[0])
    answers = {kind: _answers(path_of(folder, kind), name, found) for kind in KINDS}
    np.savez(folder / "answers.npz", **answers)


def make_plain(folder: Path) -> None:
    """The files that need no calibration, and the pictures."""
    import onnx

    from loadtests.quantize import resnet50

    folder.mkdir(parents=True, exist_ok=True)
    whole = resnet50.build()
    onnx.save(whole, folder / "as-built.onnx")
    _fold(folder)
    name = np.array(whole.graph.input[0].name)
    np.savez(folder / "pictures.npz", pictures=_made_pictures()[1], name=name)
    _halve(folder)


def _made_pictures() -> tuple[Pictures, Pictures]:
    """To calibrate with, and to ask for."""
    from loadtests.quantize import resnet50

    random = np.random.default_rng(0)
    calibration = resnet50.pictures(random, CALIBRATION)
    return calibration, resnet50.pictures(random, PICTURES)


def make_program(folder: Path) -> None:
    """Write the program, and its answers by PyTorch on the CPU, beside pictures that are there."""
    import torch

    from loadtests.gpu.pytorch import resnet50

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = resnet50(torch)

        def forward(self, picture: Any) -> Any:
            return self.net(picture)

    torch.manual_seed(0)
    net = Named().eval()
    _, given = pictures(folder)
    _balance(net, torch.from_numpy(given))
    rows = torch.export.Dim("rows", min=1, max=LARGEST)
    made = torch.export.export(
        net, (torch.from_numpy(given[:2]),), dynamic_shapes={INPUT: {0: rows}}
    )
    torch.export.save(made, path_of(folder, "", TORCH))
    with torch.inference_mode():
        said = [net(torch.from_numpy(part)).numpy() for part in np.split(given, 4)]
    np.savez(folder / "answers-torch.npz", answers=np.concatenate(said))


def _balance(net: Any, given: Any) -> None:
    """Normalizations get the means of these pictures: else random weights drown them."""
    import torch

    with torch.no_grad():
        net.train()(given)
        net.eval()


def pictures(folder: Path, engine: str = "") -> tuple[str, Pictures]:
    """The input's name, and float32 [PICTURES, 3, 224, 224]."""
    with np.load(folder / "pictures.npz") as found:
        return INPUT if engine == TORCH else str(found["name"]), found["pictures"]


def batch(folder: Path, engine: str, model: str, size: int) -> Batch:
    """So many rows for a model by its name, which begins with `minilm` where it takes sentences."""
    if model.startswith("minilm"):
        return dict(minilm.batch(folder, size))
    name, found = pictures(folder, engine)
    return {name: np.ascontiguousarray(np.resize(found, (size, *found.shape[1:])))}


def answers(folder: Path, kind: str, engine: str = "") -> Pictures:
    """float32 [PICTURES, 1000]: what the same file says on the CPU."""
    if engine == TORCH:
        with np.load(folder / "answers-torch.npz") as found:
            return np.asarray(found["answers"])
    with np.load(folder / "answers.npz") as found:
        return np.asarray(found[kind])


def _fold(folder: Path) -> None:
    """Normalizations into the convolutions before them, which are INT8 only without them."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(path_of(folder, "tf32"))
    ort.InferenceSession(folder / "as-built.onnx", settings, providers=["CPUExecutionProvider"])
    (folder / "as-built.onnx").unlink()


def _halve(folder: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    whole = onnx.load(path_of(folder, "tf32"))
    onnx.save(convert_float_to_float16(whole, keep_io_types=True), path_of(folder, "fp16"))


def _quantize(folder: Path, name: str, calibration: Pictures) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(np.split(calibration, 8))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {name: batch}

    quantize_static(
        path_of(folder, "tf32"),
        path_of(folder, "int8"),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "MaxPool"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            # A rectifier comes after most: what it gives is what is rounded.
            "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "MatMul", "Add"],
        },
    )


def _answers(path: Path, name: str, data: Pictures) -> npt.NDArray[Any]:
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {name: part})[0] for part in np.split(data, 4)]
    return np.concatenate(parts)
