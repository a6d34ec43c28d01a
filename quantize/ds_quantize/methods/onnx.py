"""Methods on ONNX files."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from ds_quantize.forms import Form
from ds_quantize.method import Method

Target = Literal["cpu", "tensorrt"]
Range = Literal["min-max", "entropy", "percentile", "mse"]
Share = Annotated[float, Meta(ge=0, le=1)]
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
Positive = Annotated[int, Meta(ge=1)]


class Fold(Method, frozen=True, tag="fold"):
    """Fold constants and fuse operators.

    `level` basic leaves standard operators, which every ONNX runtime has; extended also fuses
    into operators of ONNX Runtime's own, which are for that alone.
    """

    handler: ClassVar[str] = "ds_quantize.onnx_methods.fold:fold"

    level: Literal["basic", "extended"] = "basic"


class Int8Static(Method, frozen=True, tag="int8-static"):
    """INT8 weights and activations, with ranges measured on calibration data.

    `calibration`: the range of a tensor is its extremes (min-max), the one that loses the least
    information (entropy), the one that leaves out the outermost values (percentile, in percent), or
    the one with the least squared error (mse). `per_channel`: a scale for each output channel of
    a weight. `target`: tensorrt wants zero points of 0 and biases in floating point; cpu is the
    form that is quickest in ONNX Runtime. `operators`: the types to quantize, of those that the
    target has by default where it is empty. `exclude`: names of layers to leave as they are, `*`
    and `?` as in file names. `reduce_range`: 7 bits for weights, for CPUs without VNNI. `samples`:
    the rows of calibration data to look at, 0 for all, `batch` at a time.
    """

    handler: ClassVar[str] = "ds_quantize.onnx_methods.static:int8_static"
    needs_calibration: ClassVar[bool] = True

    calibration: Range = "min-max"
    percentile: Annotated[float, Meta(gt=50, le=100)] = 99.99
    per_channel: bool = True
    target: Target = "cpu"
    operators: tuple[str, ...] = ()
    exclude_operators: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    reduce_range: bool = False
    samples: Annotated[int, Meta(ge=0)] = 512
    batch: Positive = 8


class Int8Dynamic(Method, frozen=True, tag="int8-dynamic"):
    """INT8 weights; activations are quantized as they come, so that no calibration is needed.

    Matrix products and tables of embeddings, unless `operators` says otherwise.
    """

    handler: ClassVar[str] = "ds_quantize.onnx_methods.dynamic:int8_dynamic"

    per_channel: bool = True
    operators: tuple[str, ...] = ("MatMul", "Gemm", "Gather")
    exclude: tuple[str, ...] = ()
    reduce_range: bool = False


class Fp16(Method, frozen=True, tag="fp16"):
    """Half precision; inputs and outputs stay as they are.

    `keep`: types of operators that stay in FP32, besides those that have no other form.
    """

    handler: ClassVar[str] = "ds_quantize.onnx_methods.floats:fp16"

    keep: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class Bf16(Method, frozen=True, tag="bf16"):
    """Weights in BF16, which has the range of FP32, and half the size; the rest stays FP32.

    The weights are widened before use, so that it runs everywhere, as quick as before.
    """

    handler: ClassVar[str] = "ds_quantize.onnx_methods.floats:bf16"

    exclude: tuple[str, ...] = ()


class Int4Weights(Method, frozen=True, tag="int4-weights"):
    """INT4 weights of matrix products, with a scale for each block of them.

    `algorithm`: rtn rounds to nearest; gptq makes up for each rounding error in the weights that
    follow, awq scales the channels that matter most on calibration data before it rounds; hqq
    fits the zero points, without data. `accuracy_level`: the type that ONNX Runtime multiplies in,
    1 for FP32 to 4 for INT8. `target`: tensorrt has standard operators and no zero points.
    """

    handler: ClassVar[str] = "ds_quantize.onnx_methods.int4:int4_weights"

    algorithm: Literal["rtn", "gptq", "hqq", "awq"] = "rtn"
    block_size: Literal[16, 32, 64, 128, 256] = 32
    symmetric: bool = True
    accuracy_level: Annotated[int, Meta(ge=0, le=4)] = 4
    target: Target = "cpu"
    exclude: tuple[str, ...] = ()
    samples: Annotated[int, Meta(ge=0)] = 128
    batch: Positive = 8

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        """Of the algorithms, two look at activations."""
        return self.algorithm in ("gptq", "awq")


class Fp8(Method, frozen=True, tag="fp8"):
    """FP8 (E4M3) weights and activations of matrix products and convolutions, for Hopper and
    newer; a CPU runs them slowly, to check them.
    """

    handler: ClassVar[str] = "ds_quantize.onnx_methods.fp8:fp8"
    needs_calibration: ClassVar[bool] = True

    calibration: Range = "min-max"
    percentile: Annotated[float, Meta(gt=50, le=100)] = 99.99
    operators: tuple[str, ...] = ("Conv", "Gemm", "MatMul")
    exclude: tuple[str, ...] = ()
    samples: Annotated[int, Meta(ge=0)] = 512
    batch: Positive = 8


class SmoothQuant(Int8Static, frozen=True, tag="smooth-quant"):
    """INT8 after moving outliers of activations into the weights (SmoothQuant), for transformers.

    `alpha`: how much of the difficulty moves, 0 to 1.
    """

    handler: ClassVar[str] = "ds_quantize.onnx_methods.smooth:smooth_quant"

    alpha: Share = 0.5


class MixedPrecision(Int8Static, frozen=True, tag="mixed-precision"):
    """INT8, but for the layers that it harms most, which stay in floating point.

    Each layer is quantized alone and compared with the original. The worst are kept until the
    whole is as near to the original as `min_cosine` and `min_sqnr` (decibels) say, where they are
    given, but no more than `max_share` of the layers. `probe`: rows to compare.
    """

    handler: ClassVar[str] = "ds_quantize.onnx_methods.mixed:mixed_precision"

    min_cosine: Annotated[float, Meta(ge=-1, le=1)] | None = 0.999
    min_sqnr: float | None = None
    max_share: Share = 0.5
    probe: Positive = 32


class TensorRT(Method, frozen=True, tag="tensorrt"):
    """A TensorRT plan, for this machine's GPU or, with TensorRT for RTX, for any.

    `batches`: the smallest, usual and largest batch. `shapes`: for inputs with other dynamic axes,
    their three whole shapes. `library`: tensorrt or tensorrt_rtx; the first that is installed
    where it is empty. `level`: how long to look for a quick plan, 0 to 5. `workspace`: MiB.
    `sparse`: use that 2 of 4 weights are zero. `version_compatible`: later releases run it too.
    """

    gives: ClassVar[Form] = "plan"
    handler: ClassVar[str] = "ds_quantize.plans.tensorrt:tensorrt"
    extra: ClassVar[str] = "tensorrt"

    batches: tuple[Positive, Positive, Positive] = (1, 8, 32)
    shapes: dict[str, Shapes] = field(default_factory=dict)
    library: Literal["", "tensorrt", "tensorrt_rtx"] = ""
    level: Annotated[int, Meta(ge=0, le=5)] | None = None
    workspace: Positive | None = None
    sparse: bool = False
    version_compatible: bool = False


METHODS = (
    Fold,
    Int8Static,
    Int8Dynamic,
    Fp16,
    Bf16,
    Int4Weights,
    Fp8,
    SmoothQuant,
    MixedPrecision,
    TensorRT,
)
