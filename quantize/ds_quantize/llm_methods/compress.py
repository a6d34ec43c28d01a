"""Handlers over llm-compressor; what they write is in the format of compressed-tensors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.utils import patch_attr
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from torch.utils.data import DataLoader

from ds_quantize.context import Context
from ds_quantize.errors import DataError, MethodError
from ds_quantize.forms import FolderModel, Model
from ds_quantize.llm_methods import folder
from ds_quantize.llm_methods.quiet import quiet
from ds_quantize.llm_methods.texts import texts, tokenizer_of
from ds_quantize.methods.llm import (
    LlmFp8,
    LlmInt4,
    LlmInt8Weights,
    LlmKvCache,
    LlmW8a8,
    OnFolder,
)

Group = dict[str, Any]


def w8a8(model: Model, method: LlmW8a8, context: Context) -> FolderModel:
    """Handler of `llm-w8a8`."""
    tokens = _args(8, "int", "token", dynamic=True)
    group = _group(_args(8, "int", "channel"), tokens)
    smooth = [SmoothQuantModifier(smoothing_strength=method.smoothing)] if method.smoothing else []
    return _made(model, method, context, [*smooth, _rounding(method.algorithm, group, method)])


def int8_weights(model: Model, method: LlmInt8Weights, context: Context) -> FolderModel:
    """Handler of `llm-int8-weights`."""
    group = _group(_args(8, "int", "channel"))
    return _made(model, method, context, [_rounding(method.algorithm, group, method)])


def int4(model: Model, method: LlmInt4, context: Context) -> FolderModel:
    """Handler of `llm-int4`."""
    group = _group(_args(4, "int", "group", group_size=method.group_size))
    scaling = [AWQModifier()] if method.algorithm == "awq" else []
    return _made(model, method, context, [*scaling, _rounding(method.algorithm, group, method)])


def fp8(model: Model, method: LlmFp8, context: Context) -> FolderModel:
    """Handler of `llm-fp8`."""
    group = _fp8_dynamic() if method.activations == "dynamic" else _fp8_static()
    return _made(model, method, context, [_rounding("rtn", group, method)])


def kv_cache(model: Model, method: LlmKvCache, context: Context) -> FolderModel:
    """Handler of `llm-kv-cache`."""
    scheme = _args(8, "float", "tensor")
    groups = {
        "int4": _group(_args(4, "int", "group", group_size=method.group_size)),
        "int8": _group(_args(8, "int", "channel")),
        "fp8": _fp8_dynamic(),
    }
    if method.weights == "none":
        return _made(model, method, context, [QuantizationModifier(kv_cache_scheme=scheme)])
    both = QuantizationModifier(
        config_groups={"group_0": groups[method.weights]},
        ignore=list(method.ignore),
        kv_cache_scheme=scheme,
    )
    return _made(model, method, context, [both])


def _fp8_dynamic() -> Group:
    return _group(_args(8, "float", "channel"), _args(8, "float", "token", dynamic=True))


def _fp8_static() -> Group:
    return _group(_args(8, "float", "tensor"), _args(8, "float", "tensor"))


def _args(bits: int, kind: str, strategy: str, **more: Any) -> Group:
    """Symmetric, as vLLM's kernels want it."""
    return {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, **more}


def _group(weights: Group, activations: Group | None = None) -> Group:
    return {"targets": ["Linear"], "weights": weights, "input_activations": activations}


def _rounding(algorithm: str, group: Group, method: OnFolder) -> Any:
    kind = GPTQModifier if algorithm == "gptq" else QuantizationModifier
    return kind(config_groups={"group_0": group}, ignore=list(method.ignore))


def _made(model: Model, method: OnFolder, context: Context, modifiers: list[Any]) -> FolderModel:
    """Load, compress and write it."""
    source, made = folder.path_of(model), context.folder / "model"
    folder.require_original(source)
    tokenizer = tokenizer_of(source)
    rows = _calibration(method, context, tokenizer) if method.needs_calibration else None
    with folder.settings(context.seed, context.threads), quiet(), _on_this_device():
        loaded = folder.loaded(source)
        _require_groups(loaded, method)
        _tell(modifiers, loaded, context)
        try:
            oneshot(
                model=loaded,
                tokenizer=tokenizer,
                recipe=modifiers,
                dataset=None if rows is None else DataLoader(rows, batch_size=1, shuffle=False),
                num_calibration_samples=len(rows or ()),
                max_seq_length=method.tokens,
                output_dir=str(made),
            )
        except (ValueError, RuntimeError, KeyError) as error:
            line = str(error).strip().partition("\n")[0]
            raise MethodError(f"{method.name} cannot be applied to {source}: {line}") from error
    (made / "recipe.yaml").unlink(missing_ok=True)  # the manifest has ours
    folder.bring(source, made)
    context.measured.update(_measured(made, rows))
    return FolderModel(made)


def _calibration(method: OnFolder, context: Context, tokenizer: Any) -> list[Group]:
    """Rows of `input_ids` and `attention_mask`, one text each."""
    data = context.needed_calibration(method.name)
    total = min(method.samples or data.rows, data.rows)
    taken = (text for _, text in zip(range(total), texts(data, tokenizer), strict=False))
    rows = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for text in context.progress.track(taken, "Reading texts", total)
        if len(ids := _tokens(text, tokenizer, method.tokens)) > 1
    ]
    if not rows:
        raise DataError(f"{data.source} holds no text of two tokens or more")
    return rows


def _tokens(text: str, tokenizer: Any, most: int) -> torch.Tensor:
    return torch.tensor(tokenizer(text, truncation=True, max_length=most)["input_ids"])


def _require_groups(loaded: torch.nn.Module, method: OnFolder) -> None:
    """Groups of weights must fill each row of a layer."""
    size = getattr(method, "group_size", 0)
    if not size or getattr(method, "weights", "int4") != "int4":
        return
    for name, module in loaded.named_modules():
        if not isinstance(module, torch.nn.Linear) or _ignored(name, method.ignore):
            continue
        if module.in_features % size:
            raise MethodError(
                f"layer {name!r} has {module.in_features} inputs, which groups of {size} do not "
                "divide; set another group_size, or ignore it"
            )


def _ignored(name: str, patterns: Iterable[str]) -> bool:
    return any(
        re.match(pattern[3:], name) is not None if pattern.startswith("re:") else pattern == name
        for pattern in patterns
    )


def _tell(modifiers: list[Any], loaded: Any, context: Context) -> None:
    """A bar that moves with each layer that is done.

    The library calls the method after each part of the model; it reports in no other way.
    """
    parts = getattr(loaded.config, "num_hidden_layers", 0) + 1
    for modifier in modifiers:
        name = type(modifier).__name__.removesuffix("Modifier")
        ticks = context.progress.track(range(parts), f"{name}: layers", parts)
        object.__setattr__(modifier, "on_sequential_epoch_end", _told(modifier, ticks))


def _told(modifier: Any, ticks: Iterator[int]) -> Any:
    done = modifier.on_sequential_epoch_end

    def tell(*given: Any, **named: Any) -> None:
        next(ticks, None)
        done(*given, **named)

    return tell


@contextlib.contextmanager
def _on_this_device() -> Iterator[None]:
    """AWQ pins memory for transfers to a GPU, which fails where there is none."""
    if torch.accelerator.is_available():
        yield
        return
    with patch_attr(IntermediatesCache, "pin_memory", lambda *_: None):
        yield


def _measured(made: Path, rows: list[Group] | None) -> dict[str, Any]:
    scheme = folder.config(made).get(folder.QUANTIZED)
    if not isinstance(scheme, dict) or scheme.get("quant_method") != "compressed-tensors":
        raise MethodError(f"{made}: config.json has no {folder.QUANTIZED} of compressed-tensors")
    used = {} if rows is None else {
        "texts": len(rows), "tokens": sum(len(row["input_ids"]) for row in rows)
    }  # fmt: skip
    return {"format": scheme.get("format", ""), "ignore": scheme.get("ignore", []), **used}
