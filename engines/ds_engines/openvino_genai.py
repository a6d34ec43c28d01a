"""Text generation on a CPU: OpenVINO GenAI's continuous batching.

The engine is synchronous and single-threaded. Its owner calls `add` and `cancel` between steps
and `step` for as long as there is work; each step moves every running sequence on by a token,
or by a piece of its prompt.
"""

from __future__ import annotations

import bisect
import time
from typing import Any, Literal

import msgspec
import numpy as np

from ds_engines.errors import ConfigError, EngineFailure, InvalidRequest
from ds_engines.openvino_constraints import ConstraintChecker, reason
from ds_engines.openvino_lora import Adapters
from ds_engines.openvino_model import ModelInfo, check_artifact
from ds_engines.openvino_sampling import (
    Sampling,
    TextConfig,
    generation_config,
    openvino,
    pipeline,
)

Finish = Literal["", "stop", "length", "error"]

# The cache's block on a CPU, in tokens; the library has no setting for it.
BLOCK = 32
DEFAULT_CACHE_MB = 1024
SMALL_CACHE_MB = 256


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
    """One model and its KV cache.

    `max_seq_len` is the most tokens that prompt and answer may have together: the model's
    context, the configured bound or what the cache holds, whichever is least. Raises LoadError
    for a file that the library cannot run and ConfigError for settings that cannot be met.
    """

    def __init__(self, config: TextConfig) -> None:
        info = check_artifact(config.artifact)
        self.blocks = _cache_blocks(config, info)
        self.max_seq_len = _max_seq_len(config, info, self.blocks * BLOCK)
        self.max_seqs = config.max_seqs
        self._stops = info.stops
        self._waiting: list[_Sequence] = []
        self._running: dict[int, _Sequence] = {}
        self._numbers = 0
        self._adapters = Adapters(info, config.lora) if config.lora else None
        everything = self._adapters.all() if self._adapters is not None else None
        self._pipeline = pipeline(config, self.blocks, info.cache, everything)
        self._adapter: str | None = None if self._adapters is not None else ""
        self._vocabulary = info.vocabulary
        self._checker: ConstraintChecker | None = None

    def add(self, number: int, prompt: list[int], sampling: Sampling) -> None:
        """Queue a prompt of token ids under `number`, which no other live request may have.

        Raises InvalidRequest for a prompt that does not fit and a constraint that cannot be met.
        """
        total = len(prompt) + sampling.max_tokens
        if not prompt or total > self.max_seq_len:
            raise InvalidRequest(
                f"a prompt of {len(prompt)} tokens with max_tokens {sampling.max_tokens} does "
                f"not fit the context of {self.max_seq_len} tokens"
            )
        if sampling.constraint is not None:
            constraint = self._constraints().check(sampling.constraint)
            sampling = msgspec.structs.replace(sampling, constraint=constraint)
        sequence = _Sequence(number, prompt, sampling)
        bisect.insort(self._waiting, sequence, key=lambda each: each.sampling.priority)

    def cancel(self, number: int) -> None:
        """Drop a request; the next step frees its cache. Unknown numbers are ignored."""
        sequence = self._running.pop(number, None)
        if sequence is not None:
            sequence.handle.cancel()
            return
        self._waiting = [waiting for waiting in self._waiting if waiting.id != number]

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
        # A token that no prompt begins with: the cache of one alone, which a chat's first token
        # would find, is less exact than that of a whole block, and answers were worse for it.
        token = self._vocabulary - 1
        self.add(-1, [token], Sampling(max_tokens=1, ignore_eos=True))
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

    def _constraints(self) -> ConstraintChecker:
        if self._checker is None:
            tokenizer = self._pipeline.get_tokenizer()
            self._checker = ConstraintChecker(tokenizer, self._vocabulary)
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
            if not self._adapt(sequence.sampling.lora):
                break
            self._waiting.pop(0)
            delta = self._start(sequence)
            if delta is not None:
                refused.append(delta)
                continue
            reserved += sequence.reserve
        return refused

    def _adapt(self, name: str) -> bool:
        """Have the batch run under this adapter; False while another one's requests run."""
        if self._adapters is None or name == self._adapter:
            return True
        if self._running:
            return False
        if self._pipeline.has_non_finished_requests():  # cancelled ones, which a step lets go
            self._pipeline.step()
        # Only a call that generates changes the adapter: one token of nothing.
        config = generation_config(Sampling(max_tokens=1, temperature=0), self._stops)
        config.adapters = self._adapters.one(name)
        self._pipeline.generate([openvino().Tensor(np.ones((1, 1), dtype=np.int64))], [config])
        self._adapter = name
        return True

    def _start(self, sequence: _Sequence) -> Delta | None:
        # The library's numbers must be unsigned and fresh, also after a retry.
        self._numbers += 1
        tensor = openvino().Tensor(np.array([sequence.prompt], dtype=np.int64))
        try:
            config = generation_config(sequence.sampling, self._stops)
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
            self._waiting.insert(0, sequence)
            return None
        delta.finish = "error"
        delta.error = ("Unavailable", "the KV cache ran full; try again, or raise --cache-size-mb")
        return delta


_WIDE = {"f16": 2, "bf16": 2, "f32": 4}
"""Bytes of a number in a cache that is not quantized."""

_FINISHES: dict[str, Finish] = {
    "NONE": "",
    "STOP": "stop",
    "LENGTH": "length",
    "TOOL_CALL": "stop",
}


def _block_bytes(info: ModelInfo) -> int:
    """One block of the KV cache over all layers.

    Of 8 bits, keys are quantized by channel and values by token, each with a 4-byte scale and zero
    point, so a head's token takes 2 x size for the numbers, 8 for the value and size / 4 for the
    key.
    """
    per_token = 2 * info.head_size + 8 + info.head_size // 4
    if info.cache in _WIDE:
        per_token = 2 * info.head_size * _WIDE[info.cache]
    return info.layers * info.heads_kv * BLOCK * per_token


def _cache_blocks(config: TextConfig, info: ModelInfo) -> int:
    default = SMALL_CACHE_MB if config.memory_efficient else DEFAULT_CACHE_MB
    megabytes = config.cache_mb or default
    blocks = (megabytes << 20) // max(_block_bytes(info), 1)
    if blocks < 2:
        needed = (2 * _block_bytes(info) >> 20) + 1
        raise ConfigError(f"--cache-size-mb {megabytes} is too small; this model needs {needed}")
    return blocks


def _max_seq_len(config: TextConfig, info: ModelInfo, capacity: int) -> int:
    if config.max_seq_len > capacity:
        raise ConfigError(
            f"--max-seq-len {config.max_seq_len} does not fit the KV cache, which holds "
            f"{capacity} tokens; raise --cache-size-mb"
        )
    bounds = (info.context_length, config.max_seq_len, capacity)
    return min(bound for bound in bounds if bound > 0)


def _failed(sequence: _Sequence, error: InvalidRequest) -> Delta:
    return Delta(sequence.id, [], [], "error", (error.kind, str(error)))
