"""The comparison with other servers, on a tiny HTTP server that stands where they would."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from loadtests.peers import environments, processes, results, serving, workloads, wrk
from loadtests.peers.__main__ import PAGE, main
from loadtests.peers.base import Launch, Request
from loadtests.peers.dialects import KServe, Plain
from loadtests.peers.measure import Plan, Runner, Tools
from loadtests.peers.registry import BASE, PEERS
from loadtests.peers.results import Key, Refusal, Results, Row, Sample
from loadtests.peers.serving import Place
from loadtests.peers.workloads import ENCODER, IMAGE, MLP
from loadtests.perf_analyzer import BenchmarkError, Point

ROOT = Path(__file__).resolve().parents[2]
needs_wrk = pytest.mark.skipif(not shutil.which("wrk"), reason="apt-get install wrk")

# argv: port, model, how it misbehaves, a file that gets a line for each start.
SERVER = """
import http.server, json, os, sys
import numpy, onnxruntime
port, model, flaw, starts = sys.argv[1:]
first = not os.path.exists(starts)
with open(starts, "a") as file:
    file.write(flaw + "\\n")
if flaw == "refuses":
    sys.exit("no such licence")
session = onnxruntime.InferenceSession(model)
answered = finished = 0

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        global answered
        answered += 1
        row = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["x"]
        output = session.run(None, {"x": numpy.array([row], numpy.float32)})[0]
        body = json.dumps({"y": (output + (flaw == "wrong")).tolist()}).encode()
        self.send_response(500 if flaw == "fails" and answered > 5 else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

    def finish(self):
        super().finish()
        global finished
        finished += 1
        # The first two connections are of the start: one waits, one compares.
        if finished == 3 and (flaw == "always" or flaw == "once" and first):
            os._exit(7)

http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


class Tiny(Plain):
    key = "tiny"
    protocols = ("JSON",)
    chosen = "nothing"

    def __init__(self, name: str, flaw: str, folder: Path):
        self.settings = {"workers": 1}
        self.name = name
        self.flaw = flaw
        self.script = folder / "server.py"
        self.script.write_text(SERVER)
        self.starts = folder / "starts"

    def launch(self, setup):
        command = [sys.executable, self.script, setup.http, setup.model, self.flaw, self.starts]
        return Launch([str(word) for word in command])


class Patient:
    """A client that is no load generator, but asks and counts as one does."""

    version = "0"

    def measure(self, address: str, request: Request, connections: int, seconds: float):
        with contextlib.closing(http.client.HTTPConnection(address, timeout=10)) as connection:
            return self._measured(connection, request, seconds)

    def _measured(self, connection, request: Request, seconds: float):
        until, took = time.monotonic() + seconds, []
        while time.monotonic() < until or not took:
            begun = time.monotonic()
            try:
                connection.request("POST", request.path, request.body, request.headers)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise BenchmarkError(f"1 requests failed: {error}") from None
            if answer.status != 200:
                raise BenchmarkError(f"1 requests failed with {answer.status}")
            took.append((time.monotonic() - begun) * 1e6)
        p50, p99 = np.percentile(took, [50, 99])
        return wrk.Load(Point(len(took) / seconds, p50, p99), len(took))


def compared(tmp_path, *flaws: str, repeats: int = 1, connections=(1,)) -> Results:
    peers = [Tiny(flaw, flaw, tmp_path) for flaw in flaws]
    plan = Plan(peers, [MLP], connections=connections, repeats=repeats, seconds=0.1, warm_up=0.02)
    done: list[str] = []
    runner = Runner(plan, Tools(Patient(), None), done.append)
    runner.run(tmp_path)
    assert len(done) == plan.steps()
    return runner.results


def starts(tmp_path) -> list[str]:
    return (tmp_path / "starts").read_text().split()


def servers(found: Results) -> list[str]:
    return [row.key.server for row in found.rows("mlp")]


@pytest.mark.slow
def test_servers_take_turns_and_each_has_a_row(tmp_path):
    before = processes.descendants()
    found = compared(tmp_path, "one", "two", repeats=2)
    assert starts(tmp_path) == ["one", "two", "one", "two"]
    assert servers(found) == ["ONNX Runtime", "one", "two"]
    assert [len(row.samples) for row in found.rows("mlp")] == [2, 2, 2]
    assert found.refusals == []
    sample = found.rows("mlp")[1].samples[0]
    assert sample.rate > 0
    assert 0 < sample.p50 <= sample.p99
    assert sample.cpu is not None
    assert sample.memory > 20 * 2**20
    assert processes.descendants() <= before


def test_a_server_that_answers_otherwise_than_onnxruntime_has_no_row(tmp_path):
    found = compared(tmp_path, "wrong", "right")
    assert servers(found) == ["ONNX Runtime", "right"]
    (refusal,) = found.refusals
    assert "wrong, mlp: JSON: not what ONNX Runtime answers" in str(refusal)


@pytest.mark.slow
def test_a_server_that_does_not_start_has_no_row_and_is_not_tried_again(tmp_path):
    found = compared(tmp_path, "refuses", "right", repeats=2)
    assert starts(tmp_path) == ["refuses", "right", "right"]
    assert servers(found) == ["ONNX Runtime", "right"]
    assert "refuses, mlp: it ended with 1:\nno such licence" in str(found.refusals[0])


@pytest.mark.slow
def test_a_server_whose_requests_fail_has_no_row(tmp_path):
    found = compared(tmp_path, "fails", "right", connections=(1, 2))
    assert servers(found) == ["ONNX Runtime", "ONNX Runtime", "right", "right"]
    assert [str(refusal) for refusal in found.refusals] == [
        "fails, mlp, JSON, 1 at once: 1 requests failed with 500",
        "fails, mlp, JSON, 2 at once: 1 requests failed with 500",
    ]


@pytest.mark.slow
def test_a_server_that_crashes_after_a_load_is_started_again_and_told_of(tmp_path):
    found = compared(tmp_path, "once", connections=(1, 2))
    assert starts(tmp_path) == ["once", "once"]
    assert servers(found) == ["ONNX Runtime", "ONNX Runtime", "once", "once"]
    assert found.refusals == []
    assert found.crashed("image") == ""
    assert found.crashed("mlp") == (
        "once was started again 1 time: it ended with 7 while or after it was measured."
    )


@pytest.mark.slow
def test_a_server_that_crashes_each_time_is_given_up(tmp_path):
    found = compared(tmp_path, "always")
    assert servers(found) == ["ONNX Runtime"]
    assert "always, mlp, JSON, 1 at once: it ended with 7" in str(found.refusals[0])
    assert starts(tmp_path) == ["always"] * 2
    assert len(found.crashes) == 2


@pytest.mark.slow
def test_a_server_that_never_listens_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "START_SECONDS", 0.5)

    class Silent(Tiny):
        def launch(self, setup):
            return Launch([sys.executable, "-c", "print('busy', flush=True); input()"])

    model = workloads.write(MLP, tmp_path)
    silent = Silent("silent", "", tmp_path)
    with (
        pytest.raises(BenchmarkError, match=r"(no answer after|ended with)"),
        serving.serving(silent, MLP, model, serving.example(MLP, model), Place()),
    ):
        pass


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], "w").write(str(os.getpid()))
        time.sleep(60)
    os._exit(0)
while time.process_time() < 0.2:
    pass
time.sleep(60)
"""


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def daemon_of(path: Path) -> int:
    until(lambda: path.exists() and path.read_text() != "")
    return int(path.read_text())


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_daemons_that_left_their_session_and_parent_are_counted_and_killed(tmp_path):
    before = processes.descendants()
    launch = Launch([sys.executable, "-c", DAEMON, str(tmp_path / "pid")])
    with processes.running(launch, tmp_path, None) as running:
        pid = daemon_of(tmp_path / "pid")
        assert pid in {member for member, _ in running.members()}
        assert running.memory() > 0
        until(lambda: running.cpu_seconds() > 0.1)
    assert not alive(pid)
    assert processes.descendants() <= before


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_servers_are_killed_when_the_run_is_interrupted(tmp_path, signum):
    text = f"""
import signal, sys, time
from pathlib import Path
from loadtests.peers import processes
from loadtests.peers.base import Launch
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.default_int_handler)
launch = Launch([sys.executable, "-c", {DAEMON!r}, {str(tmp_path / "pid")!r}])
with processes.running(launch, Path({str(tmp_path)!r}), None):
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stderr=subprocess.DEVNULL)
    pid = daemon_of(tmp_path / "pid")
    process.send_signal(signum)
    assert process.wait(20) != 0
    assert not alive(pid)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="util-linux is not there")
def test_a_server_is_told_to_end_when_the_run_is_killed(tmp_path):
    text = f"""
import os, time
from pathlib import Path
from loadtests.peers import processes
from loadtests.peers.base import Launch
with processes.running(Launch(["sleep", "60"]), Path({str(tmp_path)!r}), None) as server:
    time.sleep(0.5)
    Path({str(tmp_path / "pid")!r}).write_text(str(server.process.pid))
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT)
    pid = daemon_of(tmp_path / "pid")
    assert alive(pid)
    process.kill()
    process.wait()
    until(lambda: not alive(pid))


def test_a_server_is_pinned_and_we_are_not(tmp_path):
    ours = os.sched_getaffinity(0)
    first = min(ours)
    launch = Launch(["sh", "-c", f"grep Cpus_allowed_list /proc/self/status > {tmp_path}/cpus"])
    with processes.running(launch, tmp_path, frozenset({first})) as running:
        running.process.wait(10)
    assert (tmp_path / "cpus").read_text().split()[1] == str(first)
    assert os.sched_getaffinity(0) == ours
    with pytest.raises(BenchmarkError, match=r"cores \[4000\]"), processes.pinned({4000}):
        pass


PRINTED = """\
Running 1s test @ http://127.0.0.1:1/predict
measured: {"requests": 5000, "us": 2000000, "failed": 0, "p50": 180.0, "p99": 950.0}
"""


def test_what_wrk_prints_is_understood():
    assert wrk.parse(PRINTED) == wrk.Load(Point(2500, 180, 950), 5000)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("unable to connect", "not understood"),
        (PRINTED.replace('"failed": 0', '"failed": 3'), "3 requests failed, 5000 did not"),
        (PRINTED.replace('"requests": 5000', '"requests": 0'), "0 requests failed, 0 did not"),
    ],
)
def test_a_run_of_wrk_without_a_clean_measurement_is_an_error(text, problem):
    with pytest.raises(BenchmarkError, match=problem):
        wrk.parse(text)


def test_a_missing_wrk_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchmarkError, match="apt-get install wrk"):
        wrk.find()


@needs_wrk
@pytest.mark.parametrize("flaw", ["", "fails"])
def test_wrk_posts_the_body_and_counts(tmp_path, flaw):
    model = workloads.write(MLP, tmp_path)
    tiny = Tiny("tiny", flaw, tmp_path)
    expected = serving.example(MLP, model)
    with serving.serving(tiny, MLP, model, expected, Place()) as served:
        if flaw:
            with pytest.raises(BenchmarkError, match=r"[1-9]\d* requests failed"):
                wrk.find().measure(served.http, served.requests["JSON"], 2, 1)
            return
        load = wrk.find().measure(served.http, served.requests["JSON"], 2, 1)
    assert load.requests > 10
    assert 0 < load.point.p50 <= load.point.p99
    assert load.point.rate == pytest.approx(load.requests, rel=0.3)


def sample(rate: float, *, p50: float = 1000, cpu: float | None = 0.5, others: float = 0):
    return Sample(rate, p50, 9000, cpu, 200 * 2**20, others)


def row(server: str, *samples: Sample, protocol: str = "JSON", at_once: int = 16) -> Row:
    return Row(Key("mlp", server, protocol, at_once), samples)


OURS = row("ds-serve", sample(3000), sample(1000), sample(2000))
THEIRS = row("Triton", sample(4000, p50=2500, cpu=0.25))


def test_rows_show_medians_spread_costs_and_the_ratio_to_ours():
    ours, theirs = results.cells([OURS, THEIRS], "ds-serve")
    assert ours == (
        "ds-serve", "JSON", "16", "2,000", "1,000 to 3,000", "1.00", "9.00", "0.50", "200", "100",
        "1.00 times",
    )  # fmt: skip
    assert theirs[0] == "Triton"
    assert theirs[3:] == (
        "4,000", "4,000 to 4,000", "2.50", "9.00", "0.25", "200", "50", "0.50 times",
    )  # fmt: skip


def test_a_ratio_is_taken_over_the_same_protocol_and_connections_only():
    other = row("Triton", sample(10), protocol="HTTP")
    more = row("Triton", sample(10), at_once=64)
    shown = results.cells([OURS, other, more], "ds-serve")
    assert [cells[-1] for cells in shown] == ["1.00 times", "-", "-"]


def test_what_is_not_known_is_left_out():
    bare = row("MLServer", Sample(100, 1, 2, None, None, 0))
    (cells,) = results.cells([bare], "ds-serve")
    assert cells[7:] == ("-", "-", "-", "-")


def collected(*rows: Row) -> Results:
    return Results({each.key: list(each.samples) for each in rows}, [], [])


def test_rows_are_side_by_side_as_they_are_compared():
    many = [
        row(server, sample(1), protocol=protocol, at_once=at_once)
        for server in ("ds-serve", "Triton")
        for protocol in ("JSON", "HTTP")
        for at_once in (16, 1)
    ]
    keys = [each.key for each in collected(*many).rows("mlp")]
    assert [(key.protocol, key.at_once, key.server) for key in keys[:3]] == [
        ("JSON", 1, "ds-serve"),
        ("JSON", 1, "Triton"),
        ("JSON", 16, "ds-serve"),
    ]
    assert keys[4].protocol == "HTTP"


def test_a_refusal_takes_the_rows_it_covers_and_no_other():
    found = collected(OURS, THEIRS, row("Triton", sample(1), protocol="HTTP"))
    found.refusals.append(Refusal("mlp", "Triton", "JSON", "a request failed"))
    assert [each.key.protocol for each in found.rows("mlp")] == ["JSON", "HTTP"]
    found.refusals.append(Refusal("mlp", "Triton", "HTTP", "it is stuck", 64))
    assert len(found.rows("mlp")) == 2
    found.refusals.append(Refusal("mlp", "Triton", "HTTP", "it is stuck", 16))
    assert [each.key.server for each in found.rows("mlp")] == ["ds-serve"]
    found.refusals.append(Refusal("mlp", "ds-serve", None, "it is gone"))
    assert found.rows("mlp") == []
    assert "No row for Triton, mlp, HTTP, 64 at once: it is stuck." in found.remarks("mlp")


def test_a_table_measured_on_a_noisy_machine_is_refused():
    noisy = row("Triton", sample(1, others=0.3), sample(1, others=0.3), sample(1, others=0))
    found = collected(noisy)
    found.refuse_noise("mlp", 0.5)
    assert found.rows("mlp") == [noisy]
    found.refuse_noise("mlp", 0.1)
    assert found.rows("mlp") == []
    assert "mlp: other programs took 30% of the machine" in str(found.refusals[0])


def test_the_page_and_the_json_say_the_same():
    found = collected(OURS, THEIRS)
    found.refusals.append(Refusal("mlp", "LitServe", None, "it is not installed"))
    text = results.markdown(found.rows("mlp"), "ds-serve", "About.")
    assert text.startswith("About.\n\n| server | protocol |")
    assert "| Triton | JSON | 16 | 4,000 | 4,000 to 4,000 |" in text
    given = json.loads(json.dumps(results.as_json(found, "ds-serve", {"text": "About."})))
    assert [each["ratio"] for each in given["rows"]] == [1, 0.5]
    assert given["rows"][0]["samples"][1]["rate"] == 1000
    assert given["refused"][0]["why"] == "it is not installed"


def test_what_several_runs_measured_is_one_table(tmp_path, capsys):
    about = {"text": "On a machine.", "servers": [], "where": "", "seconds": 2}
    for name, rows in (("one", [OURS, THEIRS]), ("two", [OURS])):
        part = results.as_json(collected(*rows), "ds-serve", about)
        (tmp_path / name).write_text(json.dumps(part))
    page = tmp_path / "page.md"
    files = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main(["join", *files, "--markdown", str(page)]) == 0
    assert "| Triton | JSON | 16 | 4,000 | 4,000 to 4,000 |" in page.read_text()
    joined = results.from_json(json.loads((tmp_path / name).read_text()) for name in ("one", "two"))
    assert len(joined.samples[OURS.key]) == 2 * len(OURS.samples)
    assert main(["join", str(page)]) == 1
    assert "not what --json wrote" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", ["JSON", "bytes"])
def test_kserve_requests_carry_the_row_exactly(protocol):
    values = MLP.rows(1)
    request = KServe().request(MLP, protocol, values)
    assert request.path == "/v2/models/mlp/infer"
    size = int(request.headers.get("Inference-Header-Content-Length", len(request.body)))
    (tensor,) = json.loads(request.body[:size])["inputs"]
    assert (tensor["name"], tensor["shape"], tensor["datatype"]) == ("x", [1, 64], "FP32")
    sent = tensor["data"] if protocol == "JSON" else np.frombuffer(request.body[size:], "<f4")
    np.testing.assert_array_equal(np.array(sent, np.float32), values[0])


def test_kserve_answers_are_read_from_json_and_from_bytes():
    output = np.arange(8, dtype=np.float32)
    tensor = {"name": "y", "datatype": "FP32", "shape": [1, 8]}
    plain = json.dumps({"outputs": [tensor | {"data": output.tolist()}]}).encode()
    np.testing.assert_array_equal(KServe().answer(MLP, {}, plain), output[None])
    head = json.dumps({"outputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    read = KServe().answer(MLP, headers, head + output.tobytes())
    np.testing.assert_array_equal(read, output[None])


@pytest.mark.parametrize("key", sorted(set(PEERS) - {BASE.key}))
def test_each_peer_is_pinned_and_describes_itself(key):
    pins = environments.requirements()[key]
    assert [pin for pin in pins if not re.fullmatch(r"[\w\[\]-]+==[\w.]+", pin)] == []
    assert set(PEERS[key].settings) >= {"workers"}
    assert PEERS[key].chosen in PAGE.read_text().replace("\n", " ")


def test_all_servers_have_the_same_onnxruntime():
    (ours,) = re.findall(r"^onnxruntime==\S+", (ROOT / "requirements/serve.txt").read_text(), re.M)
    pins = environments.requirements()
    assert all(ours in pins[name] for name in environments.serving("tensors"))


def test_an_environment_that_is_missing_or_out_of_date_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "CACHE", tmp_path)
    with pytest.raises(BenchmarkError, match=r"python -m loadtests\.peers install litserve"):
        environments.python("litserve")
    stamp = tmp_path / "litserve" / environments.STAMP
    stamp.parent.mkdir()
    stamp.write_text(json.dumps(["litserve==0.0.1"]))
    assert not environments.installed("litserve")
    stamp.write_text(json.dumps(environments.requirements()["litserve"]))
    assert environments.python("litserve") == tmp_path / "litserve/bin/python"
    assert environments.python("ds-serve") == Path(sys.executable)


def test_the_page_has_a_place_for_each_table():
    text = PAGE.read_text()
    for name in workloads.WORKLOADS:
        assert text.count(f"<!-- {name}: begin -->") == text.count(f"<!-- {name}: end -->") == 1


@pytest.mark.parametrize("work", [IMAGE, ENCODER], ids=lambda work: work.name)
def test_models_take_and_give_the_shapes_they_say_and_rows_are_independent(work, tmp_path):
    session = onnxruntime.InferenceSession(workloads.write(work, tmp_path))
    rows = work.rows(2)
    (together,) = session.run([work.output], {work.input: rows})
    assert together.shape == (2, *work.out_shape)
    (alone,) = session.run([work.output], {work.input: rows[1:]})
    np.testing.assert_allclose(together[1:], alone, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_the_encoder_gives_unit_vectors_whatever_the_padding(tmp_path):
    path = workloads.write(ENCODER, tmp_path)
    assert 80e6 < path.stat().st_size < 100e6
    session = onnxruntime.InferenceSession(path)
    rows = ENCODER.rows(1)
    rows[0, 20:] = 0
    (output,) = session.run(None, {ENCODER.input: rows})
    assert np.linalg.norm(output) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["run", "torchserve"], "no server is called torchserve; there are ds-serve, triton"),
        (["--workloads", "llm"], "llm: there are mlp, encoder, image"),
        (["--protocols", "SOAP"], "SOAP: there are JSON"),
    ],
)
def test_the_command_line_names_what_there_is(words, problem, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("word", ["triton.threads=2", "triton.workers=many"])
def test_a_setting_that_is_not_there_is_named(word, capsys):
    assert main(["check", "triton", "--set", word]) == 1
    assert f"--set {word}" in capsys.readouterr().out


def test_nothing_is_measured_on_a_busy_machine(tmp_path, monkeypatch, capsys):
    tool = tmp_path / "wrk"
    tool.write_text("#!/bin/sh\necho wrk 4\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("loadtests.peers.__main__.LISTEN_SECONDS", 0.1)
    # Whatever the machine does is more than less than nothing.
    assert main(["run", "litserve", "--protocols", "JSON", "--quiet", "-1"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"nothing measured: other programs take \d+% of the machine", printed)
