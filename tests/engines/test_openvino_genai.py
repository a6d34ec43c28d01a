"""The CPU text engine with a real model, without any server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds_engines.errors import ConfigError, InvalidRequest
from ds_engines.openvino_constraints import Constraint
from ds_engines.openvino_genai import Delta, TextEngine
from ds_engines.openvino_model import check_artifact
from ds_engines.openvino_sampling import Sampling, TextConfig
from ds_engines.openvino_tokenizer import LIMIT, TextTokenizer
from ds_serve.catalogue import fetch

pytestmark = pytest.mark.slow

# Small enough for a few requests to fill it: 1,200 tokens.
CACHE_MB = 16


@pytest.fixture(scope="module")
def gguf() -> Path:
    return fetch("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def tokenizer(gguf: Path) -> TextTokenizer:
    return TextTokenizer(check_artifact(gguf))


@pytest.fixture(scope="module")
def engine(gguf: Path) -> Iterator[TextEngine]:
    engine = TextEngine(TextConfig(gguf, threads=2, cache_mb=CACHE_MB, max_seqs=8))
    assert engine.warm_up() > 0
    yield engine
    engine.close()


def run(engine: TextEngine) -> dict[int, list[Delta]]:
    """Step until nothing is left."""
    found = defaultdict(list)
    while engine.busy:
        for delta in engine.step():
            found[delta.id].append(delta)
    return found


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


def test_the_file_says_what_the_model_is(gguf: Path) -> None:
    info = check_artifact(gguf)
    assert (info.architecture, info.context_length) == ("llama", 8192)
    assert 2 in info.stops
    assert info.gguf is not None
    assert info.gguf.quantization == "Q4_1"
    assert info.gguf.control_tokens()["<|im_end|>"] == 2


def test_the_cache_is_as_large_as_asked(engine: TextEngine) -> None:
    assert (CACHE_MB - 1) << 20 < engine.cache_bytes <= CACHE_MB << 20
    assert engine.max_seq_len == engine.blocks * 32


def test_more_work_than_the_cache_holds_is_all_finished(engine: TextEngine) -> None:
    """Ten requests that need 2,500 tokens of a cache of 1,200, some with long prompts."""
    for number in range(10):
        size = 100 if number % 3 else 400
        prompt = [(number * 7919 + at * 31) % 40000 + 100 for at in range(size)]
        engine.add(number, prompt, Sampling(max_tokens=50, temperature=0, ignore_eos=True))
    peak = 0
    found = defaultdict(list)
    while engine.busy:
        for delta in engine.step():
            found[delta.id].append(delta)
        peak = max(peak, engine.load().running)
    assert len(found) == 10
    assert {len(tokens(deltas)) for deltas in found.values()} == {50}
    assert {deltas[-1].finish for deltas in found.values()} == {"length"}
    assert 1 < peak <= 8


def test_a_cancelled_request_says_no_more(engine: TextEngine) -> None:
    wanted = Sampling(max_tokens=400, temperature=0, ignore_eos=True)
    engine.add(1, [500] * 10, wanted)
    engine.add(2, [600] * 10, Sampling(max_tokens=5, temperature=0, ignore_eos=True))
    engine.step()
    engine.cancel(1)
    found = run(engine)
    assert 1 not in found
    assert found[2][-1].finish == "length"
    assert engine.load().running == 0
    engine.cancel(77)  # never heard of: nothing happens


def test_a_schema_that_does_not_compile_leaves_the_others_alone(
    engine: TextEngine, tokenizer: TextTokenizer
) -> None:
    prompt = tokenizer.render([{"role": "user", "content": "What is the capital of France?"}])
    engine.add(1, prompt, Sampling(max_tokens=20, temperature=0))
    first = [engine.step() for _ in range(3)]
    schema = Constraint("json", '{"type":"string","pattern":"(?=a)b"}')
    with pytest.raises(InvalidRequest, match="Lookahead is not supported"):
        engine.add(2, prompt, Sampling(max_tokens=20, constraint=schema))
    said = [token for step in first for delta in step for token in delta.tokens]
    said += tokens(run(engine)[1])
    assert b"".join(tokenizer.pieces[token] for token in said) == b"The capital of France is Paris."


def test_constants_are_spelled_as_they_are_written(
    engine: TextEngine, tokenizer: TextTokenizer
) -> None:
    engine.add(
        1,
        [500],
        Sampling(
            max_tokens=30,
            temperature=0,
            constraint=Constraint("json", '{"enum": ["d\u00e9c\u00e9d\u00e9"]}'),
        ),
    )
    said = b"".join(tokenizer.pieces[token] for token in tokens(run(engine)[1]))
    assert said.decode() == '"décédé"'


def test_a_prompt_that_does_not_fit_is_refused(engine: TextEngine) -> None:
    with pytest.raises(InvalidRequest, match=f"context of {engine.max_seq_len} tokens"):
        engine.add(1, [500] * engine.max_seq_len, Sampling(max_tokens=1))
    with pytest.raises(InvalidRequest, match="a prompt of 0 tokens"):
        engine.add(1, [], Sampling(max_tokens=1))


def test_a_context_beyond_the_cache_is_a_configuration_error(gguf: Path) -> None:
    with pytest.raises(ConfigError, match="--max-seq-len 8000 does not fit the KV cache"):
        TextEngine(TextConfig(gguf, cache_mb=16, max_seq_len=8000))
    with pytest.raises(ConfigError, match="too small"):
        TextEngine(TextConfig(gguf, cache_mb=-1))


def test_a_text_longer_than_the_librarys_limit_is_tokenized_whole(
    tokenizer: TextTokenizer,
) -> None:
    """The library alone would drop all but the last 8,192 tokens."""
    unit = "The quick brown fox, aged 7, jumped. "
    short, long = tokenizer.encode(unit * 200), tokenizer.encode(unit * 2000)
    assert len(long) > LIMIT
    assert long[: len(short) - 1] == short[:-1]
    assert b"".join(tokenizer.pieces[token] for token in long).decode() == unit * 2000
    assert len(long) == len(short) + 1800 * (len(short) // 200)


def test_pieces_join_to_the_text(tokenizer: TextTokenizer) -> None:
    text = "naïve 世界 🎉\n\ttabs  and   spaces <b>é</b>"
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.pieces[token] for token in ids).decode() == text
    assert tokenizer.pieces[2] == b""
