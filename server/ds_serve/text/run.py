"""One request's generation, from its jobs to its last byte."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ds_engines.errors import InvalidRequest, ServeError
from ds_engines.openvino_genai import Delta
from ds_serve.text import answers
from ds_serve.text.answers import Answer
from ds_serve.text.errors import BadField
from ds_serve.text.exchange import Exchange
from ds_serve.text.fields import Wanted
from ds_serve.text.loop_client import Generation, Job, LoopClient
from ds_serve.text.metrics import TextMetrics
from ds_serve.text.plan import Reader
from ds_serve.text.text_stream import Piece, TextStream
from ds_serve.text.tools import CallReader

log = logging.getLogger("ds_serve.text.request")


class Run:
    """Generates, answers, measures, and leaves one line in the log."""

    def __init__(
        self,
        exchange: Exchange,
        wanted: Wanted,
        *,
        jobs: Sequence[Job],
        answer: Answer,
        reader: Reader,
        metrics: TextMetrics,
    ) -> None:
        self._exchange = exchange
        self._wanted = wanted
        self._jobs = jobs
        self._answer = answer
        self._metrics = metrics
        pieces = reader.tokenizer.pieces
        self._streams = [
            TextStream(pieces, wanted.stops, ends=wanted.sampling.stop_tokens, **_echo(wanted, job))
            for job in jobs
        ]
        self._calls = [_calls(wanted, reader) for _ in jobs]
        self._finishes = ["abort" for _ in jobs]
        self._last = [0.0 for _ in jobs]
        self._first: float | None = None

    async def serve(self, client: LoopClient) -> None:
        """Answer the exchange. Cancelling it stops the generation at once."""
        # A stop string ends an answer as soon as it is seen.
        prompt = self._wanted.stream or bool(self._wanted.stops)
        generation = client.submit(self._jobs, prompt=prompt)
        outcome = "cancelled"
        try:
            await (self._chunks(generation) if self._wanted.stream else self._whole(generation))
            outcome = "ok"
        except ServeError as error:
            outcome = error.kind
            raise _placed(error, self._wanted) from error
        finally:
            generation.close()
            self._record(outcome)

    async def _pieces(self, generation: Generation) -> AsyncIterator[tuple[int, Piece]]:
        async for choice, delta, now in generation:
            self._measure(choice, delta, now)
            piece = self._streams[choice].feed(delta)
            reader = self._calls[choice]
            if reader is not None:
                piece = reader.feed(piece)
            if piece.finish is not None:
                self._finishes[choice] = piece.finish
                generation.finish(choice)
            yield choice, piece

    async def _whole(self, generation: Generation) -> None:
        texts: list[list[str]] = [[] for _ in self._jobs]
        whole = [Piece("", [], None) for _ in self._jobs]
        async for choice, piece in self._pieces(generation):
            texts[choice].append(piece.text)
            whole[choice].logprobs += piece.logprobs
            whole[choice].calls += piece.calls
            whole[choice].finish = piece.finish
            whole[choice].stopped_by = piece.stopped_by
        for piece, parts in zip(whole, texts, strict=True):
            piece.text = "".join(parts)
        await self._exchange.json(self._answer.whole(whole, self._usage()))

    async def _chunks(self, generation: Generation) -> None:
        """Stream. The status waits for the first token, so that what fails before has its own."""
        async for choice, piece in self._pieces(generation):
            if self._exchange.status == 0:
                await self._open()
            if piece.text or piece.logprobs or piece.calls or piece.finish:
                for chunk in self._answer.chunks(choice, piece):
                    await self._write(chunk)
        for data in self._answer.closing(self._usage(), self._wanted.include_usage):
            await self._exchange.write(data)
        await self._exchange.close_stream()

    async def _open(self) -> None:
        await self._exchange.open_stream()
        for choice in range(len(self._jobs)):
            for chunk in self._answer.opening(choice, self._prompt_tokens):
                await self._write(chunk)

    async def _write(self, chunk: dict[str, Any]) -> None:
        if self._wanted.include_usage:
            chunk = chunk | {"usage": None}
        await self._exchange.write(self._answer.written(chunk))

    @property
    def _prompt_tokens(self) -> int:
        """Each prompt counts once, however many choices it has."""
        return sum(len(job.prompt) for job in self._jobs[:: self._wanted.n])

    @property
    def _completion_tokens(self) -> int:
        return sum(stream.tokens for stream in self._streams)

    def _usage(self) -> dict[str, int]:
        return answers.usage(self._prompt_tokens, self._completion_tokens)

    def _measure(self, choice: int, delta: Delta, now: float) -> None:
        if not delta.tokens:
            return
        if self._first is None:
            self._first = now - self._exchange.arrived
            self._metrics.first_token(self._first)
        if self._last[choice]:
            self._metrics.between_tokens(now - self._last[choice])
        self._last[choice] = now

    def _record(self, outcome: str) -> None:
        seconds = time.monotonic() - self._exchange.arrived
        prompt, completion = self._prompt_tokens, self._completion_tokens
        self._metrics.ended(self._finishes, prompt, completion, seconds)
        fields = {
            "request_id": self._exchange.id,
            "path": self._exchange.path,
            "outcome": outcome,
            "finish": ",".join(self._finishes),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "first_token_seconds": None if self._first is None else round(self._first, 4),
            "seconds": round(seconds, 4),
        }
        log.info("request ended", extra={"fields": fields})


def _placed(error: ServeError, wanted: Wanted) -> ServeError:
    """What the engine finds wrong with a request is its constraint: all else was checked before."""
    if type(error) is not InvalidRequest:
        return error
    if wanted.format is not None:
        return BadField(wanted.format.field, f"{wanted.format.field}: {error}")
    return BadField("tools", f"tools: {error}") if wanted.tools is not None else error


def _echo(wanted: Wanted, job: Job) -> dict[str, Any]:
    if not wanted.echo:
        return {}
    return {"echo": job.prompt, "echoed": job.sampling.echo, "most": wanted.max_tokens}


def _calls(wanted: Wanted, reader: Reader) -> CallReader | None:
    if wanted.tools is None:
        return None
    return CallReader(reader.style, wanted.tools.parallel)
