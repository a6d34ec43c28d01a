"""Methods on PyTorch modules; most of them train on the calibration data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from ds_quantize.forms import Form
from ds_quantize.method import Method
from ds_quantize.python_file import is_reference

Target = Literal["cpu", "tensorrt"]
Share = Annotated[float, Meta(ge=0, le=1)]
Proper = Annotated[float, Meta(gt=0, lt=1)]
Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0)]


def _file_of(reference: str) -> tuple[str, ...]:
    return (reference.rpartition(":")[0],) if is_reference(reference) else ()


class Training(Method, frozen=True):
    """What all methods that train have in common.

    `epochs`: how often all rows are seen. `batch`: rows in a step of AdamW, whose `learning_rate`
    falls to nothing along a cosine. `loss`: cross-entropy, mse, agree (with the original model's
    outputs, which needs no labels), `file.py:function` of outputs and labels, or auto: what fits
    the labels. `validation`: the share of rows that is kept out, to measure on; the weights of the
    best epoch are kept (`keep_best`).
    """

    takes: ClassVar[Form] = "torch"
    gives: ClassVar[Form] = "torch"
    extra: ClassVar[str] = "quantize-torch"
    needs_calibration: ClassVar[bool] = True

    epochs: Count = 10
    learning_rate: Rate = 1e-3
    weight_decay: Annotated[float, Meta(ge=0)] = 1e-4
    batch: Positive = 64
    loss: str = "auto"
    validation: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    keep_best: bool = True

    @property
    def files(self) -> tuple[str, ...]:
        """Files whose contents decide the result, as its settings do."""
        return _file_of(self.loss)


class Finetune(Training, frozen=True, tag="finetune"):
    """Train the model further, on labelled data."""

    handler: ClassVar[str] = "ds_quantize.torch_methods.finetune:finetune"


class Fuse(Method, frozen=True, tag="fuse"):
    """Fold batch normalizations into the convolutions and linear layers before them."""

    takes: ClassVar[Form] = "torch"
    gives: ClassVar[Form] = "torch"
    extra: ClassVar[str] = "quantize-torch"
    handler: ClassVar[str] = "ds_quantize.torch_methods.fuse:fuse"


class QatInt8(Training, frozen=True, tag="qat-int8"):
    """INT8 weights and activations, trained with their rounding (quantization-aware training).

    `target`: as for int8-static. `exclude`: names of layers to leave as they are, `*` and `?` as
    in file names; the names are those of the module's parts (`layer1.0.conv1`).
    """

    gives: ClassVar[Form] = "onnx"
    handler: ClassVar[str] = "ds_quantize.torch_methods.qat_int8:qat_int8"

    epochs: Count = 5
    learning_rate: Rate = 1e-4
    target: Target = "cpu"
    exclude: tuple[str, ...] = ()


class QatInt4(Training, frozen=True, tag="qat-int4"):
    """INT4 weights of linear layers in groups with a scale each, trained with their rounding.

    `target`, `accuracy_level`: as for int4-weights.
    """

    gives: ClassVar[Form] = "onnx"
    handler: ClassVar[str] = "ds_quantize.torch_methods.qat_int4:qat_int4"

    epochs: Count = 5
    learning_rate: Rate = 1e-4
    group: Literal[16, 32, 64, 128, 256] = 32
    target: Target = "cpu"
    accuracy_level: Annotated[int, Meta(ge=0, le=4)] = 4
    exclude: tuple[str, ...] = ()


class PruneChannels(Training, frozen=True, tag="prune-channels"):
    """Remove whole channels, those of the smallest weights, until a share of the model is left.

    `keep`: the share to be left, of `parameters` or `operations`. `norm`: 1 for L1, 2 for L2. It
    is done in `steps`, each followed by `epochs` of training. `globally`: weigh the channels of
    all layers against each other, not each layer's own, which may leave a layer with next to none.
    `round_to`: channels left in a layer are
    a multiple of it. `max_ratio`: no layer loses more than this share. `exclude`: layers to leave
    as they are; the model's last layers are left by themselves.
    """

    handler: ClassVar[str] = "ds_quantize.torch_methods.channels:prune_channels"

    epochs: Count = 3
    keep: Proper = 0.5
    of: Literal["parameters", "operations"] = "parameters"
    norm: Literal[1, 2] = 2
    steps: Positive = 4
    globally: bool = False
    round_to: Positive = 1
    max_ratio: Proper = 0.9
    exclude: tuple[str, ...] = ()


class PruneMagnitude(Training, frozen=True, tag="prune-magnitude"):
    """Set the smallest weights of all layers together to zero, without a pattern.

    `sparsity`: the share of zeros, reached in `steps`, each followed by `epochs` of training.
    """

    handler: ClassVar[str] = "ds_quantize.torch_methods.magnitude:prune_magnitude"

    epochs: Count = 3
    sparsity: Proper = 0.5
    steps: Positive = 3
    exclude: tuple[str, ...] = ()


class Sparsity24(Training, frozen=True, tag="sparsity-2-4"):
    """Two zeros in every four weights along the input channels, for sparse tensor cores.

    `algorithm`: the smallest weights go (magnitude), or those whose loss the others can make up
    for best (sparsegpt, of linear layers alone). Layers whose output and input channels are no
    multiples of 8 and 16 are left dense.
    """

    handler: ClassVar[str] = "ds_quantize.torch_methods.sparsity24:sparsity_2_4"

    epochs: Count = 5
    algorithm: Literal["magnitude", "sparsegpt"] = "magnitude"


class SparsityBlock(Training, frozen=True, tag="sparsity-block"):
    """Set whole blocks of weights to zero, those of the smallest L2 norm.

    `block`: output channels by inputs (input channels times the kernel's size). `sparsity`: the
    share of each layer's blocks, reached in `steps`.
    """

    handler: ClassVar[str] = "ds_quantize.torch_methods.magnitude:sparsity_block"

    epochs: Count = 3
    block: tuple[Positive, Positive] = (4, 4)
    sparsity: Proper = 0.5
    steps: Positive = 3
    exclude: tuple[str, ...] = ()


class Distill(Training, frozen=True):
    """`student`: `file.py:factory` of the module to be trained, which takes and gives what the
    original does; empty: the model as the steps before have left it. The teacher is the original.
    `temperature` softens its outputs; `soft` is the weight of its outputs against that of the
    labels, where there are any and `loss` is not agree.
    """

    epochs: Count = 20
    student: str = ""
    temperature: Rate = 4.0
    soft: Share = 0.9

    @property
    def files(self) -> tuple[str, ...]:
        """The student's file, and that of the loss."""
        return _file_of(self.student) + _file_of(self.loss)


class DistillLogits(Distill, frozen=True, tag="distill-logits"):
    """Train a small model to give the original's outputs."""

    handler: ClassVar[str] = "ds_quantize.torch_methods.distill:distill_logits"


class DistillFeatures(Distill, frozen=True, tag="distill-features"):
    """Train a small model to give the original's outputs and those of layers inside it.

    `layers`: the student's layer to the teacher's; empty: the convolutions and linear layers that
    have the same name in both. Where channels differ, a linear map between them is trained too.
    `weight`: of the layers against the outputs.
    """

    handler: ClassVar[str] = "ds_quantize.torch_methods.distill:distill_features"

    layers: dict[str, str] = field(default_factory=dict)
    weight: Rate = 1.0
