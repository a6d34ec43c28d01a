"""Methods on OpenVINO folders of language models, which a CPU serves.

A Hugging Face folder becomes such a folder by itself before the first of them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from ds_quantize.forms import Form
from ds_quantize.method import Method
from ds_quantize.methods.llm import GroupSize

Share = Annotated[float, Meta(ge=0, le=1)]
Cache = Literal["u8", "f16"]


class OnOpenVino(Method, frozen=True):
    """What all of them have in common; `cache` is how keys and values are remembered."""

    takes: ClassVar[Form] = "openvino"
    gives: ClassVar[Form] = "openvino"
    extra: ClassVar[str] = "quantize-llm"

    cache: Cache = "u8"


class OpenVinoKvCache(OnOpenVino, frozen=True, tag="openvino-kv-cache"):
    """How a language model's keys and values are remembered, for OpenVINO on a CPU.

    `cache`: u8 is INT8, with scales and zero points that the runtime finds as tokens come; f16 is
    16 bits. It is written into the model, where the runtime reads it.
    """

    handler: ClassVar[str] = "ds_quantize.openvino_methods.compress:kv_cache"


class OpenVinoInt8Weights(OnOpenVino, frozen=True, tag="openvino-int8-weights"):
    """INT8 weights of a language model, for OpenVINO on a CPU.

    A scale for each output channel, and a zero point unless `symmetric`. `cache`: how keys and
    values are remembered, u8 (INT8) or f16. `ignore`: names of the graph's operations to leave as
    they are, or `re:` and a regular expression.
    """

    handler: ClassVar[str] = "ds_quantize.openvino_methods.compress:int8_weights"

    symmetric: bool = False
    ignore: tuple[str, ...] = ()


class OpenVinoInt4Weights(OnOpenVino, frozen=True, tag="openvino-int4-weights"):
    """INT4 weights of a language model, for OpenVINO on a CPU.

    A scale for each group of `group_size` weights, which must divide the inputs of every layer,
    and a zero point unless `symmetric`. `ratio` is the share of weights that get 4 bits, the least
    sensitive first; the rest, the table of words and the last layer get 8. `awq` scales the
    channels that matter most, `scale_estimation` looks for the scales with the least error of a
    layer's output, both by `samples` texts of calibration data (0 for all) of up to `tokens`
    tokens. `cache`: how keys and values are remembered, u8 (INT8) or f16. `ignore`: names of the
    graph's operations to leave as they are, or `re:` and a regular expression.
    """

    handler: ClassVar[str] = "ds_quantize.openvino_methods.compress:int4_weights"

    symmetric: bool = False
    group_size: GroupSize = 64
    ratio: Share = 1.0
    awq: bool = False
    scale_estimation: bool = False
    samples: Annotated[int, Meta(ge=0)] = 128
    tokens: Annotated[int, Meta(ge=2)] = 512
    ignore: tuple[str, ...] = ()

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        """Rounding to nearest looks at weights alone."""
        return self.awq or self.scale_estimation
