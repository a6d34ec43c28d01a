"""Short fuzz runs: that they send what they say, and notice a server that is the worse for it."""

from __future__ import annotations

import http.server
import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from loadtests.fuzz import http as over_http
from loadtests.fuzz.messages import METHODS, Maker

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_short_run_leaves_the_server_answering() -> None:
    command = [sys.executable, "-m", "loadtests.fuzz", "--minutes", "0.25"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=170
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("passed\n")
    for kind, status in (("HTTP", "400"), ("gRPC", "INVALID_ARGUMENT")):
        assert re.search(rf"^{kind}: [\d,]+ \(.*\b{status} [1-9]", done.stdout, re.MULTILINE)


def test_messages_are_right_wrong_and_no_messages_at_all() -> None:
    maker = Maker(random.Random(0), ["mlp"], [])
    for path, kind in METHODS.items():
        read = 0
        for _ in range(50):
            try:
                kind.FromString(maker.bytes_for(path))
                read += 1
            except DecodeError:
                pass
        assert read, path
        assert read < 50 or not kind.DESCRIPTOR.fields, path


class Broken(http.server.BaseHTTPRequestHandler):
    """Says it is broken, to everything but the question what it offers."""

    def do_GET(self) -> None:
        answer = {"200": {"description": "as it should be"}}
        about = {
            "openapi": "3.1.0",
            "info": {"title": "broken", "version": "1"},
            "paths": {"/broken": {"get": {"responses": answer}}},
        }
        body = json.dumps(about if self.path == "/openapi.json" else {"error": "oh"}).encode()
        self.send_response(200 if self.path == "/openapi.json" else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def broken() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_an_error_that_is_not_meant_is_found(broken: str, tmp_path: Path) -> None:
    outcome = over_http.fuzz(broken, 5, 1, ["mlp"], tmp_path, threading.Event())
    assert outcome.answers["500"]
    assert "status 500" in outcome.findings[0]
