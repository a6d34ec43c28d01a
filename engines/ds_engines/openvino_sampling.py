"""How to load a text model and how to choose its tokens, in our words and in the library's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ds_engines.errors import LoadError
from ds_engines.openvino_constraints import Constraint, reason, structured
from ds_engines.openvino_model import precision


class TextConfig(msgspec.Struct, frozen=True):
    """How to load and run one model. A 0 leaves the choice to the engine.

    `cache_mb` bounds the memory of the KV cache; `max_seqs` the sequences in one batch. `lora`
    are adapters, name and path; with one, no prefix is cached.
    """

    artifact: Path
    threads: int = 0
    max_seq_len: int = 0
    max_seqs: int = 64
    cache_mb: int = 0
    memory_efficient: bool = False
    prefix_caching: bool = True
    lora: tuple[tuple[str, str], ...] = ()


class Sampling(msgspec.Struct, frozen=True):
    """How to choose tokens. `temperature` 0 is greedy, `top_k` 0 is off.

    `constraint` is what the whole answer is made to match, `lora` the name of an adapter. With
    `echo` the prompt's tokens come first, with their log-probabilities. Of those that wait, the
    lowest `priority` is first.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    constraint: Constraint | None = None
    stop_tokens: tuple[int, ...] = ()
    echo: bool = False
    lora: str = ""
    priority: int = 0


def openvino() -> Any:
    import openvino as module  # noqa: PLC0415

    return module


def genai() -> Any:
    openvino()
    import openvino_genai as module  # type: ignore[import-untyped] # noqa: PLC0415

    return module


def pipeline(config: TextConfig, blocks: int, cache: str, adapters: Any) -> Any:
    """The library's pipeline with `blocks` of KV cache of that type. Raises LoadError."""
    scheduler = genai().SchedulerConfig()
    scheduler.num_kv_blocks = blocks
    scheduler.enable_prefix_caching = config.prefix_caching and not config.lora
    scheduler.max_num_batched_tokens = max(256, config.max_seqs)
    scheduler.max_num_seqs = config.max_seqs
    properties: dict[str, Any] = {"KV_CACHE_PRECISION": cache}
    if config.artifact.is_dir():
        properties |= precision(config.threads)
    if config.threads:
        properties["INFERENCE_NUM_THREADS"] = config.threads
        properties["sampler_num_threads"] = config.threads
    if adapters is not None:
        properties["adapters"] = adapters
    path = str(config.artifact)
    try:
        return genai().ContinuousBatchingPipeline(path, scheduler, "CPU", properties)
    except Exception as error:  # the library's C++ errors arrive as many kinds
        raise LoadError(f"OpenVINO cannot load {path}: {reason(error)}") from error


def generation_config(sampling: Sampling, stops: frozenset[int]) -> Any:
    """The library's configuration of one request."""
    config = genai().GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = sampling.max_tokens
    config.min_new_tokens = sampling.min_tokens
    config.ignore_eos = sampling.ignore_eos
    config.stop_token_ids = set(stops) | set(sampling.stop_tokens)
    config.logprobs = int(sampling.logprobs)
    config.echo = sampling.echo
    config.frequency_penalty = sampling.frequency_penalty
    config.presence_penalty = sampling.presence_penalty
    config.repetition_penalty = sampling.repetition_penalty
    if sampling.temperature > 0:
        _sample(config, sampling)
    if sampling.constraint is not None:
        config.structured_output_config = structured(sampling.constraint)
    return config


def _sample(config: Any, sampling: Sampling) -> None:
    config.do_sample = True
    config.temperature = sampling.temperature
    config.top_p = sampling.top_p
    config.min_p = sampling.min_p
    config.rng_seed = sampling.seed
    if sampling.top_k:
        config.top_k = sampling.top_k
