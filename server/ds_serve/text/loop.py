"""The engine loop: a process of its own, for a step keeps the interpreter to itself."""

from __future__ import annotations

import logging
import signal
import sys
import time
from pathlib import Path

import msgspec
import zmq

from ds_engines.errors import ServeError
from ds_engines.openvino_genai import Delta, TextEngine
from ds_serve import logs
from ds_serve.process_guard import die_with_parent
from ds_serve.text.messages import (
    Add,
    Cancel,
    Failed,
    FromLoop,
    Loaded,
    LoopSettings,
    Step,
    decode_to_loop,
    encode,
)

log = logging.getLogger("ds_serve.text.loop")


class EngineLoop:
    """Feeds the engine from the socket and sends what each step gave, one message a step."""

    def __init__(self, socket: zmq.Socket[bytes], engine: TextEngine) -> None:
        self._socket = socket
        self._engine = engine
        self._refused: list[Delta] = []

    def run(self) -> None:
        """Loop until the process is killed; raises EngineFailure where a step fails."""
        while True:
            self._receive()
            deltas = self._refused
            if self._engine.busy:
                deltas = deltas + self._engine.step()
            self._refused = []
            self._send(Step(deltas, self._engine.load()))

    def _receive(self) -> None:
        """Take all that waits; wait for something only where there is nothing else to do."""
        if not self._engine.busy:
            self._handle(self._socket.recv())
        while self._socket.poll(0):
            self._handle(self._socket.recv())

    def _handle(self, frame: bytes) -> None:
        message = decode_to_loop(frame)
        if isinstance(message, Cancel):
            for number in message.ids:
                self._engine.cancel(number)
            return
        try:
            self._engine.add(message.id, message.prompt, message.sampling)
        except ServeError as error:
            self._refused.append(_refusal(message, error))

    def _send(self, message: FromLoop) -> None:
        self._socket.send(encode(message))


def _refusal(message: Add, error: ServeError) -> Delta:
    return Delta(message.id, [], [], "error", (error.kind, str(error)))


def _fields(**fields: object) -> dict[str, object]:
    return {"fields": fields}


def _load(settings: LoopSettings) -> tuple[TextEngine, Loaded]:
    begun = time.perf_counter()
    log.info("loading the model", extra=_fields(artifact=str(settings.engine.artifact)))
    engine = TextEngine(settings.engine)
    load_seconds = time.perf_counter() - begun
    log.info(
        "model loaded; generating a first token", extra=_fields(seconds=round(load_seconds, 2))
    )
    first = engine.warm_up()
    sizes = (engine.max_seq_len, engine.max_seqs, engine.blocks, engine.cache_bytes)
    loaded = Loaded(*sizes, load_seconds, first)
    return engine, loaded


def _serve(settings: LoopSettings, socket: zmq.Socket[bytes]) -> None:
    engine, loaded = _load(settings)
    socket.send(encode(loaded))
    EngineLoop(socket, engine).run()


def _path(kind: type, value: str) -> Path:
    return Path(value)


def main() -> int:
    """Run the loop with the settings on the command line, until the parent ends it."""
    settings = msgspec.json.decode(sys.argv[1], type=LoopSettings, dec_hook=_path)
    die_with_parent(settings.parent_pid)
    # A Ctrl-C reaches the whole group; the HTTP half decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging_to = settings.logging
    logs.configure(logging_to.log_format, logging_to.level, logging_to.process)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.connect(settings.endpoint)
    try:
        _serve(settings, socket)
    except ServeError as error:
        log.debug("the engine loop failed", exc_info=error)
        socket.send(encode(Failed(error.kind, str(error))))
    finally:
        # Leave once the last message is out, but not later than this many milliseconds.
        socket.close(linger=2000)
        context.term()
    return 1


if __name__ == "__main__":
    sys.exit(main())
