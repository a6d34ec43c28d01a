"""The comparison of text servers, on a tiny HTTP server that stands where they would."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from loadtests.peers import environments
from loadtests.peers.base import Launch
from loadtests.peers.text import measure, results
from loadtests.peers.text.__main__ import main
from loadtests.peers.text.client import Chats, Seen
from loadtests.peers.text.measure import TextPlan
from loadtests.peers.text.results import TextRow
from loadtests.perf_analyzer import BenchmarkError

# argv: port, how it misbehaves. A chat template of 10 tokens, then a token a word.
SERVER = """
import http.server, json, sys, time
port, flaw = sys.argv[1:]
if flaw == "refuses":
    sys.exit("no such licence")
asked = 0

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        global asked
        asked += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokens, words = body["max_tokens"], body["messages"][0]["content"].split()
        self.send_response(500 if flaw == "fails" and asked > 2 else 200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for number in range(0 if flaw == "silent" else tokens):
            time.sleep(0.002)
            self.event({"choices": [{"delta": {"content": "x "}}]})
            if flaw == "breaks" and asked > 2:
                return self.event({"error": {"message": "out of memory"}})
        usage = {"prompt_tokens": 10 + len(words), "completion_tokens": tokens}
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\\n\\n")

    def event(self, event):
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
        self.wfile.flush()

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


class Tiny:
    key, chosen = "tiny", "nothing"

    def __init__(self, flaw, folder):
        self.name = self.flaw = flaw
        self.script = folder / "server.py"
        self.script.write_text(SERVER)

    def launch(self, setup):
        return Launch([sys.executable, str(self.script), str(setup.http), self.flaw])

    def model(self):
        return "tiny"

    def body(self, tokens):
        return {"ignore_eos": True}


def compared(tmp_path, *flaws, repeats=1):
    peers = [Tiny(flaw, tmp_path) for flaw in flaws]
    done: list[str] = []
    plan = TextPlan(peers, (1, 3), repeats, 0.2, 0.05, tokens_in=30, tokens_out=5)
    found = measure.run(plan, done.append)
    assert len(done) == repeats * len(flaws)
    return found


def test_each_server_has_a_row_for_each_number_of_clients(tmp_path):
    found = compared(tmp_path, "none", repeats=2)
    assert found.refusals == {}
    one, three = found.rows()
    assert (one.clients, three.clients) == (1, 3)
    assert len(one.samples) == 2
    # Prompts are made as long as they should be, whatever the chat template adds.
    assert (one.middle("tokens_in"), one.middle("tokens_out")) == (30, 5)
    assert one.middle("tokens") == pytest.approx(5 * one.middle("requests"))
    assert 2 <= one.middle("first_p50") <= one.middle("first_p99")
    # Under load several pieces may be read at once, so that little is between them.
    assert one.middle("between_p50") > 0
    assert one.middle("memory") > 0
    assert 0 <= found.others() <= 1


@pytest.mark.parametrize(
    ("flaw", "why"),
    [
        ("refuses", "it ended with 1:\nno such licence"),
        ("fails", "status 500"),
        ("breaks", "an answer broke off: {'message': 'out of memory'}"),
        ("silent", "an answer has no text in it"),
    ],
)
def test_a_server_that_fails_has_no_row_and_is_named(tmp_path, flaw, why):
    found = compared(tmp_path, flaw, "none")
    assert [row.server for row in found.rows()] == ["none", "none"]
    assert why in found.refusals[flaw]


def test_a_prompt_shorter_than_the_chat_template_is_refused(tmp_path):
    plan = TextPlan([Tiny("none", tmp_path)], (1,), 1, 0.1, 0.05, tokens_in=10, tokens_out=2)
    found = measure.run(plan, lambda name: None)
    assert "the chat template alone takes 10 tokens" in found.refusals["none"]


def test_rows_are_compared_with_ds_serve():
    def row(server, tokens):
        seen = Seen(began=0.0, first=0.5, ended=1.0, gaps=[0.1], pieces=2, usage=(64, tokens))
        return TextRow(server, 8, (results.sample([seen], 2**20, 0.0),))

    rows = [row("ds-serve", 90), row("other", 30)]
    ours, theirs = results.cells(rows, "ds-serve")
    assert ours[0:4] == ("ds-serve", "8", "1.00", "90")
    assert ours[5:] == ("500", "500", "100.0", "64 / 90", "1", "1.00 times")
    assert theirs[-1] == "3.00 times"
    assert results.cells(rows[1:], "ds-serve")[0][-1] == "-"
    assert json.loads(json.dumps(results.as_json(rows, [], "")))["rows"][1]["server"] == "other"


def test_nobody_there_is_no_answer():
    with pytest.raises(BenchmarkError, match="an answer broke off"):
        asyncio.run(Chats(1, "m", 4, {}).load(2, 3, 0.1))


def test_what_is_not_installed_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "CACHE", tmp_path)
    with pytest.raises(BenchmarkError, match=r"run python -m loadtests.peers install vllm"):
        environments.python("vllm")
    assert environments.serving("text") == ["transformers", "vllm"]
    assert "triton" in environments.serving("tensors")


def test_an_unknown_server_names_those_that_there_are(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["nonsense"])
    assert ended.value.code == 2
    assert "there are ds-serve, vllm, transformers" in capsys.readouterr().err
