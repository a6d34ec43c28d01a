"""Methods on Hugging Face folders of language models; vLLM loads what they write."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from ds_quantize.forms import Form
from ds_quantize.method import Method

Strength = Annotated[float, Meta(ge=0, le=1)]
GroupSize = Literal[32, 64, 128]
NO_INT8_CACHE = (
    "llm-kv-cache: vLLM loads no scales of an INT8 cache, and refuses a folder that has them; its "
    "own INT8 cache needs none (vllm serve --kv-cache-dtype int8_per_token_head, on a GPU). Give "
    "type: fp8, or for OpenVINO on a CPU the method openvino-kv-cache"
)

Weights = Literal["none", "int4", "int8", "fp8"]


class OnFolder(Method, frozen=True):
    """What all of them have in common.

    `ignore`: names of layers to leave as they are, or `re:` and a regular expression. `samples`:
    the texts of the calibration data to look at, 0 for all, each cut after `tokens` tokens.
    """

    takes: ClassVar[Form] = "huggingface"
    gives: ClassVar[Form] = "huggingface"
    extra: ClassVar[str] = "quantize-llm"

    ignore: tuple[str, ...] = ("lm_head",)
    samples: Annotated[int, Meta(ge=0)] = 256
    tokens: Annotated[int, Meta(ge=2)] = 512


class LlmW8a8(OnFolder, frozen=True, tag="llm-w8a8"):
    """INT8 weights and activations of a language model, each token with a scale of its own.

    `smoothing`: how much of the activations' outliers moves into the weights (SmoothQuant), 0 for
    nothing. `algorithm`: gptq makes up for each rounding error in the weights that follow, rtn
    rounds to nearest. Of the data, the first `samples` texts are looked at, 0 for all, each cut
    after `tokens` tokens. `ignore`: names of layers to leave as they are, or `re:` and a regular
    expression.
    """

    handler: ClassVar[str] = "ds_quantize.llm_methods.compress:w8a8"

    smoothing: Strength = 0.5
    algorithm: Literal["gptq", "rtn"] = "gptq"

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        """Only where it looks at activations."""
        return self.algorithm == "gptq" or self.smoothing > 0


class LlmInt8Weights(OnFolder, frozen=True, tag="llm-int8-weights"):
    """INT8 weights of a language model, with a scale for each output channel.

    `algorithm`: rtn rounds to nearest, gptq makes up for each rounding error in the weights that
    follow, by `samples` texts of calibration data (0 for all) of up to `tokens` tokens. `ignore`:
    names of layers to leave as they are, or `re:` and a regular expression.
    """

    handler: ClassVar[str] = "ds_quantize.llm_methods.compress:int8_weights"

    algorithm: Literal["rtn", "gptq"] = "rtn"

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        """Of the algorithms, one looks at activations."""
        return self.algorithm == "gptq"


class LlmInt4(OnFolder, frozen=True, tag="llm-int4"):
    """INT4 weights of a language model, with a scale for each group of them.

    `algorithm`: rtn rounds to nearest; gptq makes up for each rounding error in the weights that
    follow, awq scales the channels that matter most before it rounds, both by `samples` texts of
    calibration data (0 for all) of up to `tokens` tokens. `group_size` must divide the inputs of
    every layer. `ignore`: names of layers to leave as they are, or `re:` and a regular expression.
    """

    handler: ClassVar[str] = "ds_quantize.llm_methods.compress:int4"

    algorithm: Literal["rtn", "gptq", "awq"] = "gptq"
    group_size: GroupSize = 64

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        """Of the algorithms, two look at activations."""
        return self.algorithm != "rtn"


class LlmFp8(OnFolder, frozen=True, tag="llm-fp8"):
    """FP8 (E4M3) weights and activations of a language model, for Ada, Hopper and newer GPUs.

    `activations`: dynamic finds the scale of each token as it comes, static takes one scale a
    layer from `samples` texts of calibration data (0 for all) of up to `tokens` tokens, which is
    quicker. `ignore`: names of layers to leave as they are, or `re:` and a regular expression.
    """

    handler: ClassVar[str] = "ds_quantize.llm_methods.compress:fp8"

    activations: Literal["dynamic", "static"] = "dynamic"

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        """Scales that are found as tokens come need no data."""
        return self.activations == "static"


class LlmKvCache(OnFolder, frozen=True, tag="llm-kv-cache"):
    """FP8 keys and values in what a language model remembers, so that more fits.

    `type`: vLLM loads scales of FP8 alone, and refuses a folder with those of INT8. `weights` are
    rounded to nearest in the same step: none leaves them, fp8 makes activations FP8 too. Scales
    come from `samples` texts of calibration data (0 for all) of up to `tokens` tokens. `ignore`:
    names of layers whose weights stay as they are, or `re:` and a regular expression.
    """

    handler: ClassVar[str] = "ds_quantize.llm_methods.compress:kv_cache"
    needs_calibration: ClassVar[bool] = True

    type: Literal["fp8", "int8"] = "fp8"
    weights: Weights = "none"
    group_size: GroupSize = 64

    def __post_init__(self) -> None:
        if self.type == "int8":
            raise ValueError(NO_INT8_CACHE)
