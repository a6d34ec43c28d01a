"""Real models on real input: Magika names the types of files, Silero VAD hears who speaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import real_files
import speech
from serving import Server
from triton_clients import MODULES, Client, connected

from ds_serve import catalogue

Array = np.ndarray[Any, Any]
Infer = Callable[[dict[str, Array]], Any]

pytestmark = pytest.mark.filterwarnings("ignore:Unclosed connection")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A request waits a moment for others, so that batches are sure to form."""
    with Server("--model", "magika", "--model", "silero-vad", "--batch-delay-us", "3000") as server:
        yield server


@pytest.fixture(params=MODULES)
async def client(request: pytest.FixtureRequest, server: Server):
    async with connected(request.param, server) as client:
        yield client


@cache
def direct(model: str) -> onnxruntime.InferenceSession:
    """ONNX Runtime without a server."""
    return onnxruntime.InferenceSession(catalogue.fetch(model))


async def counts(client: Client, model: str) -> tuple[int, int]:
    """Rows and executions so far."""
    (found,) = (await client.call("get_inference_statistics", model))["model_stats"]
    return int(found.get("inference_count", 0)), int(found.get("execution_count", 0))


# Magika.


class Magika:
    """What its configuration says beside the model."""

    def __init__(self) -> None:
        config = json.loads(
            Path(catalogue.fetch("magika")).with_name("config.min.json").read_text()
        )
        self.labels: list[str] = config["target_labels_space"]
        self._beginning, self._end = config["beg_size"], config["end_size"]
        self._block, self._padding = config["block_size"], config["padding_token"]

    def features(self, content: bytes) -> Array:
        """int32[1, 2048]: the first and the last bytes that are not blank, padded."""
        first = content[: self._block].lstrip()[: self._beginning]
        last = content[-self._block :].rstrip()[-self._end :]
        row = np.full(self._beginning + self._end, self._padding, np.int32)
        row[: len(first)] = list(first)
        row[len(row) - len(last) :] = list(last)
        return row[None]

    def names(self, scores: Array) -> list[str]:
        return [self.labels[index] for index in scores.argmax(axis=1)]


@pytest.fixture(scope="module")
def magika() -> Magika:
    return Magika()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    found = real_files.all_files()
    assert len(found) >= 20
    return found


def scores_of(rows: Array) -> Array:
    return direct("magika").run(None, {"bytes": rows})[0]


async def test_magika_names_files_one_at_a_time(
    client: Client, magika: Magika, files: dict[str, bytes]
) -> None:
    for name, content in files.items():
        row = magika.features(content)
        scores = (await client.infer("magika", {"bytes": row})).as_numpy("target_label")
        assert magika.names(scores) == [name]
        np.testing.assert_array_equal(scores, scores_of(row))


async def test_magika_names_many_files_in_one_request(
    client: Client, magika: Magika, files: dict[str, bytes]
) -> None:
    rows = np.concatenate([magika.features(content) for content in files.values()])
    scores = (await client.infer("magika", {"bytes": rows})).as_numpy("target_label")
    assert magika.names(scores) == list(files)
    np.testing.assert_array_equal(scores, scores_of(rows))


@pytest.mark.parametrize("kind", ["grpc-aio", pytest.param("http-aio", marks=pytest.mark.slow)])
async def test_magika_names_files_of_64_clients_in_batches(
    server: Server, kind: str, magika: Magika, files: dict[str, bytes]
) -> None:
    """Each request holds one file. Other rows of its batch change a score's last digits at most."""
    given = (list(files.items()) * 2)[:64]
    async with connected(kind, server) as client:
        before = await counts(client, "magika")
        results = await asyncio.gather(
            *(client.infer("magika", {"bytes": magika.features(c)}) for _, c in given)
        )
        after = await counts(client, "magika")
    for (name, content), result in zip(given, results, strict=True):
        scores = result.as_numpy("target_label")
        assert magika.names(scores) == [name]
        np.testing.assert_allclose(scores, scores_of(magika.features(content)), atol=1e-4)
    assert after[0] - before[0] == 64
    assert after[1] - before[1] < 32


# Silero VAD.

CHUNK, CONTEXT = 512, 64
"""Samples. Each chunk is preceded by the end of the one before it."""

SPEECH = speech.babble("ai", 120, 1.0)


async def heard(infer: Infer, sound: Array) -> tuple[list[float], Array]:
    """The probability of speech in each chunk, and the last state."""
    state = np.zeros((2, 1, 128), np.float32)
    context = np.zeros((1, CONTEXT), np.float32)
    found = []
    for start in range(0, len(sound) - CHUNK + 1, CHUNK):
        chunk = sound[None, start : start + CHUNK]
        inputs = {
            "input": np.concatenate([context, chunk], axis=1),
            "state": state,
            "sr": np.array(speech.RATE, np.int64),
        }
        probability, state = await infer(inputs)
        found.append(float(probability.item()))
        context = chunk[:, -CONTEXT:]
    return found, state


async def alone(inputs: dict[str, Array]) -> Any:
    return direct("silero-vad").run(None, inputs)


def through(client: Client) -> Infer:
    async def infer(inputs: dict[str, Array]) -> tuple[Array, Array]:
        result = await client.infer("silero-vad", inputs)
        return result.as_numpy("output"), result.as_numpy("stateN")

    return infer


async def test_vad_hears_speech_and_nothing_in_silence(client: Client) -> None:
    spoken, _ = await heard(through(client), SPEECH)
    assert np.mean(spoken) > 0.9
    assert min(spoken[1:]) > 0.5
    for other in (speech.silence(0.5), speech.noise(0.5, 0.01), speech.tone(0.5)):
        quiet, _ = await heard(through(client), other)
        assert max(quiet) < 0.2


async def test_vad_hears_when_speech_begins_and_ends(client: Client) -> None:
    """The state is carried from chunk to chunk: it takes a chunk or two to be sure."""
    half = SPEECH[: len(SPEECH) // 2]
    sound = np.concatenate([speech.silence(0.5), half, speech.silence(0.5)])
    found, state = await heard(through(client), sound)
    chunks = len(found) // 3
    assert max(found[: chunks - 1]) < 0.2
    assert min(found[chunks + 2 : 2 * chunks - 1]) > 0.5
    assert max(found[2 * chunks + 6 :]) < 0.2
    expected, expected_state = await heard(alone, sound)
    assert found == expected
    np.testing.assert_array_equal(state, expected_state)


async def test_vad_needs_its_state(client: Client) -> None:
    """Without it the same chunk is heard differently: so it does matter that it is carried."""
    sound = SPEECH[: 8 * CHUNK]
    carried, _ = await heard(through(client), sound)
    forgotten, _ = await heard(through(client), sound[7 * CHUNK :])
    assert carried[7] != forgotten[0]


@pytest.mark.parametrize("kind", ["grpc-aio", pytest.param("http-aio", marks=pytest.mark.slow)])
async def test_vad_hears_32_voices_at_once_as_it_hears_each_alone(
    server: Server, kind: str
) -> None:
    """The state's rows lie on its second axis, and the rate is common to a batch."""
    voices = [("ai", 110.0), ("ie", 190.0), ("oi", 150.0), ("ei", 210.0)]
    said = [speech.babble(vowels, pitch, 0.6) for vowels, pitch in voices]
    sounds = [
        np.roll(said[n % 4], -137 * n) if n % 8 else speech.noise(0.6, 0.05) for n in range(32)
    ]
    async with connected(kind, server) as client:
        before = await counts(client, "silero-vad")
        found = await asyncio.gather(*(heard(through(client), sound) for sound in sounds))
        after = await counts(client, "silero-vad")
    rows = after[0] - before[0]
    assert rows == 32 * (len(sounds[0]) // CHUNK)
    assert after[1] - before[1] < rows / 2
    for sound, (probabilities, state) in zip(sounds, found, strict=True):
        expected, expected_state = await heard(alone, sound)
        np.testing.assert_allclose(probabilities, expected, atol=1e-4)
        np.testing.assert_allclose(state, expected_state, atol=1e-3)


async def test_rates_that_differ_run_apart(server: Server) -> None:
    """`sr` belongs to a whole batch: 8 kHz and 16 kHz at once must not be joined."""
    rates = {16_000: CHUNK + CONTEXT, 8_000: (CHUNK + CONTEXT) // 2}
    requests = [
        {
            "input": SPEECH[None, start : start + size],
            "state": np.zeros((2, 1, 128), np.float32),
            "sr": np.array(rate, np.int64),
        }
        for start in range(0, 5120, 512)
        for rate, size in rates.items()
    ]
    async with connected("grpc-aio", server) as client:
        found = await asyncio.gather(*(through(client)(inputs) for inputs in requests))
    for inputs, (probability, state) in zip(requests, found, strict=True):
        expected = await alone(inputs)
        np.testing.assert_allclose(probability, expected[0], atol=1e-5)
        np.testing.assert_allclose(state, expected[1], atol=1e-5)
