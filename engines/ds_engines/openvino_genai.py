"""Text generation on a CPU: OpenVINO GenAI's continuous batching over a GGUF file.

The engine is synchronous and single-threaded. Its owner calls `add` and `cancel` between steps
and `step` for as long as there is work; each step moves every running sequence on by a token,
or by a piece of its prompt.
"""

from __future__ import annotations

import collections
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ds_engines.errors import ConfigError, EngineFailure, InvalidRequest, LoadError
from ds_engines.gguf import GgufInfo, read_metadata
from ds_engines.openvino_schema import SchemaChecker, reason

Finish = Literal["", "stop", "length", "error"]

ARCHITECTURES = ("llama", "qwen2", "qwen3")
TOKENIZERS = ("gpt2",)
# The cache's block on a CPU, in tokens; the library has no setting for it.
BLOCK = 32
DEFAULT_CACHE_MB = 1024
SMALL_CACHE_MB = 256
# Tokens that end a turn in chat models whose file names only one end token.
_END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end|>", "<|eom_id|>", "</s>")


class TextConfig(msgspec.Struct, frozen=True):
    """How to load and run one GGUF file. A 0 leaves the choice to the engine.

    `cache_mb` bounds the memory of the KV cache; `max_seqs` the sequences in one batch.
    """

    artifact: Path
    threads: int = 0
    max_seq_len: int = 0
    max_seqs: int = 64
    cache_mb: int = 0
    memory_efficient: bool = False


class Sampling(msgspec.Struct, frozen=True):
    """How to choose tokens. `temperature` 0 is greedy, `top_k` 0 is off.

    `schema` is a JSON schema that the whole answer is made to match.
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
    schema: str | None = None


class Delta(msgspec.Struct, array_like=True):
    """What one step gave one sequence: token ids, and their log-probabilities where asked for.

    `error` says why, where `finish` is "error": a kind and a message for `errors.from_kind`.
    """

    id: int
    tokens: list[int]
    logprobs: list[float]
    finish: Finish = ""
    error: tuple[str, str] | None = None


class Load(msgspec.Struct, array_like=True):
    """How full the engine is; `cache_used` is a fraction from 0 to 1."""

    running: int
    waiting: int
    cache_used: float


class _Sequence:
    """A request on its way: waiting while it has no handle."""

    def __init__(self, number: int, prompt: list[int], sampling: Sampling) -> None:
        self.id = number
        self.prompt = prompt
        self.sampling = sampling
        self.handle: Any = None
        self.produced = 0

    @property
    def reserve(self) -> int:
        """Tokens of cache that it needs before it can produce anything."""
        return len(self.prompt) + BLOCK


class TextEngine:
    """One GGUF model and its KV cache.

    `max_seq_len` is the most tokens that prompt and answer may have together: the model's
    context, the configured bound or what the cache holds, whichever is least. Raises LoadError
    for a file that the library cannot run and ConfigError for settings that cannot be met.
    """

    def __init__(self, config: TextConfig) -> None:
        info = check_artifact(config.artifact)
        self.blocks = _cache_blocks(config, info)
        self.max_seq_len = _max_seq_len(config, info, self.blocks * BLOCK)
        self.max_seqs = config.max_seqs
        self._stops = _stop_tokens(info)
        self._waiting: collections.deque[_Sequence] = collections.deque()
        self._running: dict[int, _Sequence] = {}
        self._numbers = 0
        self._pipeline = _pipeline(config, self.blocks)
        self._vocabulary = len(info.vocabulary)
        self._checker: SchemaChecker | None = None

    def add(self, number: int, prompt: list[int], sampling: Sampling) -> None:
        """Queue a prompt of token ids under `number`, which no other live request may have.

        Raises InvalidRequest for a prompt that does not fit and a schema that cannot be used.
        """
        total = len(prompt) + sampling.max_tokens
        if not prompt or total > self.max_seq_len:
            raise InvalidRequest(
                f"a prompt of {len(prompt)} tokens with max_tokens {sampling.max_tokens} does "
                f"not fit the context of {self.max_seq_len} tokens"
            )
        if sampling.schema is not None:
            schema = self._schemas().check(sampling.schema)
            sampling = msgspec.structs.replace(sampling, schema=schema)
        self._waiting.append(_Sequence(number, prompt, sampling))

    def cancel(self, number: int) -> None:
        """Drop a request; the next step frees its cache. Unknown numbers are ignored."""
        sequence = self._running.pop(number, None)
        if sequence is not None:
            sequence.handle.cancel()
            return
        kept = [waiting for waiting in self._waiting if waiting.id != number]
        self._waiting = collections.deque(kept)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting) or bool(self._pipeline.has_non_finished_requests())

    def load(self) -> Load:
        """How full the engine was at its last step."""
        used = self._pipeline.get_metrics().cache_usage / 100 if self._running else 0.0
        return Load(len(self._running), len(self._waiting), used)

    @property
    def cache_bytes(self) -> int:
        """The memory set aside for the KV cache, known after the first step."""
        return int(self._pipeline.get_metrics().cache_size_in_bytes)

    def step(self) -> list[Delta]:
        """Admit what fits, run the batch once, and return what each sequence gained.

        Raises EngineFailure where the batch failed; the engine is then of no more use.
        """
        refused = self._admit()
        try:
            self._pipeline.step()
        except RuntimeError as error:
            raise EngineFailure(f"the batch failed: {reason(error)}") from error
        return refused + [delta for delta in map(self._read, list(self._running.values())) if delta]

    def warm_up(self) -> float:
        """Generate one token for real; returns the seconds it took. Raises EngineFailure."""
        begun = time.perf_counter()
        self.add(-1, [min(self._stops, default=0) + 1], Sampling(max_tokens=1, ignore_eos=True))
        tokens: list[int] = []
        while self.busy:
            tokens += [token for delta in self.step() for token in delta.tokens]
        if not tokens:
            raise EngineFailure("the model loaded but generated no token")
        return time.perf_counter() - begun

    def close(self) -> None:
        """Drop all work and the model."""
        for number in [*self._running, *(sequence.id for sequence in self._waiting)]:
            self.cancel(number)
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        self._checker = None
        self._pipeline = None

    def _schemas(self) -> SchemaChecker:
        if self._checker is None:
            self._checker = SchemaChecker(self._pipeline.get_tokenizer(), self._vocabulary)
        return self._checker

    def _admit(self) -> list[Delta]:
        """Hand waiting requests to the library while the batch and the cache have room.

        The library batches all that it is given, whatever its max_num_seqs, and gives up on
        every request when prompts alone fill the cache: both bounds have to be kept here.
        """
        refused = []
        reserved = sum(sequence.reserve for sequence in self._running.values())
        while self._waiting and len(self._running) < self.max_seqs:
            sequence = self._waiting[0]
            if self._running and reserved + sequence.reserve > self.blocks * BLOCK:
                break
            self._waiting.popleft()
            delta = self._start(sequence)
            if delta is not None:
                refused.append(delta)
                continue
            reserved += sequence.reserve
        return refused

    def _start(self, sequence: _Sequence) -> Delta | None:
        # The library's numbers must be unsigned and fresh, also after a retry.
        self._numbers += 1
        tensor = _openvino().Tensor(np.array([sequence.prompt], dtype=np.int64))
        try:
            config = _generation_config(sequence.sampling, self._stops)
            sequence.handle = self._pipeline.add_request(self._numbers, tensor, config)
        except RuntimeError as error:
            return _failed(sequence, InvalidRequest(reason(error)))
        self._running[sequence.id] = sequence
        return None

    def _read(self, sequence: _Sequence) -> Delta | None:
        delta = Delta(sequence.id, [], [])
        handle = sequence.handle
        while handle.can_read():
            for output in handle.read().values():
                delta.tokens += output.generated_ids
                if sequence.sampling.logprobs:
                    delta.logprobs += output.generated_log_probs
                delta.finish = _FINISHES[output.finish_reason.name]
        sequence.produced += len(delta.tokens)
        if handle.get_status().name == "IGNORED":
            return self._starved(sequence, delta)
        if delta.finish:
            del self._running[sequence.id]
        return delta if delta.tokens or delta.finish else None

    def _starved(self, sequence: _Sequence, delta: Delta) -> Delta | None:
        """The library gave up on a request for want of cache: try again, if nothing was said."""
        del self._running[sequence.id]
        if sequence.produced == 0:
            self._waiting.appendleft(sequence)
            return None
        delta.finish = "error"
        delta.error = ("Unavailable", "the KV cache ran full; try again, or raise --cache-size-mb")
        return delta


_FINISHES: dict[str, Finish] = {
    "NONE": "",
    "STOP": "stop",
    "LENGTH": "length",
    "TOOL_CALL": "stop",
}


def check_artifact(path: Path) -> GgufInfo:
    """The metadata of a file that this engine can load; raises LoadError saying why it cannot."""
    info = read_metadata(path)
    if info.architecture not in ARCHITECTURES:
        raise LoadError(
            f"{path} has architecture {info.architecture!r}; the CPU engine runs "
            f"{', '.join(ARCHITECTURES)}"
        )
    if info.tokenizer not in TOKENIZERS:
        raise LoadError(
            f"{path} has a tokenizer of kind {info.tokenizer!r}; the CPU engine reads "
            f"{', '.join(TOKENIZERS)} (byte-level BPE)"
        )
    if not (info.layers and info.heads_kv and info.head_size):
        raise LoadError(f"{path} does not say how many layers and attention heads it has")
    if not info.vocabulary or len(info.vocabulary) != len(info.token_types):
        raise LoadError(
            f"{path} has {len(info.vocabulary)} tokens and {len(info.token_types)} token types"
        )
    return info


def _block_bytes(info: GgufInfo) -> int:
    """One block of an 8-bit KV cache over all layers.

    Keys are quantized by channel and values by token, each with a 4-byte scale and zero point,
    so a head's token takes 2 x size for the numbers, 8 for the value and size / 4 for the key.
    """
    per_token = 2 * info.head_size + 8 + info.head_size // 4
    return info.layers * info.heads_kv * BLOCK * per_token


def _cache_blocks(config: TextConfig, info: GgufInfo) -> int:
    default = SMALL_CACHE_MB if config.memory_efficient else DEFAULT_CACHE_MB
    megabytes = config.cache_mb or default
    blocks = (megabytes << 20) // max(_block_bytes(info), 1)
    if blocks < 2:
        needed = (2 * _block_bytes(info) >> 20) + 1
        raise ConfigError(f"--cache-size-mb {megabytes} is too small; this model needs {needed}")
    return blocks


def _max_seq_len(config: TextConfig, info: GgufInfo, capacity: int) -> int:
    if config.max_seq_len > capacity:
        raise ConfigError(
            f"--max-seq-len {config.max_seq_len} does not fit the KV cache, which holds "
            f"{capacity} tokens; raise --cache-size-mb"
        )
    bounds = (info.context_length, config.max_seq_len, capacity)
    return min(bound for bound in bounds if bound > 0)


def _stop_tokens(info: GgufInfo) -> set[int]:
    control = info.control_tokens()
    stops = {control[token] for token in _END_TOKENS if token in control}
    return stops if info.eos_token_id is None else stops | {info.eos_token_id}


def _openvino() -> Any:
    import openvino  # type: ignore[import-untyped] # noqa: PLC0415

    return openvino


def _genai() -> Any:
    _openvino()
    import openvino_genai  # type: ignore[import-untyped] # noqa: PLC0415

    return openvino_genai


def _pipeline(config: TextConfig, blocks: int) -> Any:
    genai = _genai()
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = blocks
    scheduler.enable_prefix_caching = True
    scheduler.max_num_batched_tokens = max(256, config.max_seqs)
    scheduler.max_num_seqs = config.max_seqs
    properties: dict[str, Any] = {"KV_CACHE_PRECISION": "u8"}
    if config.threads:
        properties["INFERENCE_NUM_THREADS"] = config.threads
        properties["sampler_num_threads"] = config.threads
    try:
        return genai.ContinuousBatchingPipeline(str(config.artifact), scheduler, "CPU", properties)
    except Exception as error:  # the library's C++ errors arrive as many kinds
        raise LoadError(f"OpenVINO cannot load {config.artifact}: {reason(error)}") from error


def _generation_config(sampling: Sampling, stops: set[int]) -> Any:
    genai = _genai()
    config = genai.GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = sampling.max_tokens
    config.min_new_tokens = sampling.min_tokens
    config.ignore_eos = sampling.ignore_eos
    config.stop_token_ids = stops
    config.logprobs = int(sampling.logprobs)
    config.frequency_penalty = sampling.frequency_penalty
    config.presence_penalty = sampling.presence_penalty
    config.repetition_penalty = sampling.repetition_penalty
    if sampling.temperature > 0:
        _sample(config, sampling)
    if sampling.schema is not None:
        structured = genai.StructuredOutputConfig(json_schema=sampling.schema)
        config.structured_output_config = structured
    return config


def _sample(config: Any, sampling: Sampling) -> None:
    config.do_sample = True
    config.temperature = sampling.temperature
    config.top_p = sampling.top_p
    config.min_p = sampling.min_p
    config.rng_seed = sampling.seed
    if sampling.top_k:
        config.top_k = sampling.top_k


def _failed(sequence: _Sequence, error: InvalidRequest) -> Delta:
    return Delta(sequence.id, [], [], "error", (error.kind, str(error)))
