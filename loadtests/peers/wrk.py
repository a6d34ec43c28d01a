"""wrk: a light load generator for HTTP/1.1, the same for every server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from loadtests.peers.base import Request
from loadtests.perf_analyzer import BenchmarkError, Point

TIMEOUT = 30
MARK = "measured: "
# What is set once is sent as it is: no Lua runs for a request.
SCRIPT = """\
local file = assert(io.open({body}, "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
{headers}
function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '{mark}{{"requests": %d, "us": %d, "failed": %d, "p50": %f, "p99": %f}}\\n',
    summary.requests, summary.duration, failed, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Load:
    """A measurement, and all requests that the server has answered for it."""

    point: Point
    requests: int | None


@dataclass(frozen=True)
class Wrk:
    path: str
    version: str

    def measure(self, address: str, request: Request, connections: int, seconds: float) -> Load:
        """Keep `connections` requests in flight. Raises BenchmarkError where one fails."""
        with tempfile.TemporaryDirectory() as folder:
            script = _script(request, Path(folder))
            whole = max(1, round(seconds))
            command = [self.path, "-t", "1", "-c", str(connections), "-d", f"{whole}s"]
            command += ["--timeout", f"{TIMEOUT}s", "-s", str(script)]
            command.append(f"http://{address}{request.path}")
            return run(command, whole)


def run(command: list[str], seconds: int) -> Load:
    """Run wrk for some `seconds` with a script of SCRIPT's. Raises BenchmarkError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds + 60
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"wrk did not end within {seconds + 60} s") from None
    if done.returncode:
        raise BenchmarkError(f"wrk failed: {(done.stdout + done.stderr).strip()[-2000:]}")
    return parse(done.stdout)


def parse(printed: str) -> Load:
    """What the script's last line says. Raises BenchmarkError where a request failed."""
    found = re.search(rf"^{MARK}(.*)$", printed, re.MULTILINE)
    if not found:
        raise BenchmarkError(f"wrk's output is not understood:\n{printed[-2000:]}")
    given = json.loads(found[1])
    if given["failed"] or not given["requests"]:
        raise BenchmarkError(f"{given['failed']} requests failed, {given['requests']} did not")
    rate = given["requests"] / given["us"] * 1e6
    return Load(Point(rate, given["p50"], given["p99"]), given["requests"])


def find() -> Wrk:
    """Raises BenchmarkError saying what to install."""
    path = shutil.which("wrk")
    if not path:
        raise BenchmarkError("wrk is not there: install it with apt-get install wrk")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"wrk (\S+)", done.stdout + done.stderr)
    return Wrk(path, version[1] if version else "of an unknown version")


def _script(request: Request, folder: Path) -> Path:
    body = folder / "body"
    body.write_bytes(request.body)
    headers = [
        f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}"
        for name, value in request.headers.items()
    ]
    script = folder / "post.lua"
    script.write_text(
        SCRIPT.format(body=json.dumps(str(body)), headers="\n".join(headers), mark=MARK)
    )
    return script
