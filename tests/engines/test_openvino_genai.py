"""The CPU text engine with a real model, without any server."""

from __future__ import annotations

import json
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
from ds_engines.openvino_tools import Listed, Llama, Objects, Style, Tool, Wrapped
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


@pytest.mark.parametrize("style", [Wrapped(), Listed(), Llama(), Objects()])
def test_calls_are_held_to_each_way_of_writing_them(
    engine: TextEngine, tokenizer: TextTokenizer, style: Style
) -> None:
    parameters = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    tools = [Tool(name, parameters | {"additionalProperties": False}) for name in ("one", "two")]
    prompt = tokenizer.render([{"role": "user", "content": "Call a tool."}])
    for single in (True, False):
        constraint = style.constraint(tools, single)
        engine.add(1, prompt, Sampling(max_tokens=150, temperature=0, constraint=constraint))
        said = tokenizer.decode([t for t in tokens(run(engine)[1]) if t != 2])
        texts = said.split("</tool_call>\n") if isinstance(style, Wrapped) else [said]
        calls = [call for text in texts for call in style.parse(text)]
        assert len(calls) == 1 if single else calls
        for call in calls:
            assert call.name in {"one", "two"}
            assert json.loads(call.arguments)["n"] in {1, 2}


def test_free_text_with_calls_that_are_right(engine: TextEngine, tokenizer: TextTokenizer) -> None:
    style = Wrapped()
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    constraint = style.free([Tool("one", schema)], single=True)
    prompt = tokenizer.encode('Write "<tool_call>" now. <tool_call>\n{}\n</tool_call>\n' * 3)
    engine.add(1, prompt, Sampling(max_tokens=40, temperature=0, constraint=constraint))
    said = tokenizer.decode(tokens(run(engine)[1]))
    body = said.partition(style.opening)[2].partition(style.closing)[0]
    assert body
    assert json.loads(body)["arguments"]["n"] in {1, 2}


def test_the_lowest_priority_goes_first(gguf: Path) -> None:
    engine = TextEngine(TextConfig(gguf, threads=2, cache_mb=CACHE_MB, max_seqs=1))
    for number, priority in enumerate((0, 5, -5, 0)):
        engine.add(
            number, [500], Sampling(max_tokens=1, temperature=0, ignore_eos=True, priority=priority)
        )
    assert list(run(engine)) == [2, 0, 3, 1]
    engine.close()


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
