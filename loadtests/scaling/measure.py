"""One run: a server with so many gateways, wrk beside it, and what each process took."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.peers import wrk
from loadtests.peers.base import Request
from loadtests.peers.dialects import KServe
from loadtests.peers.processes import pinned
from loadtests.peers.workloads import MLP
from loadtests.perf_analyzer import BenchmarkError, Point
from loadtests.scaling import cpus
from loadtests.server import running

WARM_UP = 1
# A thread's request is made once, after `init`: each thread asks one model.
SPREAD = """\
local paths = {{{paths}}}
local threads = 0
function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end
function init(arguments)
  wrk.path = paths[number % #paths + 1]
end
"""


@dataclass(frozen=True)
class Plan:
    """`connections` are for each gateway, `serve` options for ds-serve's command line."""

    connections: int
    seconds: int
    server_cpus: frozenset[int]
    client_cpus: frozenset[int]
    serve: list[str] = field(default_factory=list)

    def threads(self, models: int) -> int:
        """Of wrk: for each model as many, and for each processor one or more."""
        return models * -(-len(self.client_cpus) // models)


@dataclass(frozen=True)
class Sample:
    """Shares are CPU seconds a second: of each gateway, of each model's worker, of each of wrk's
    processors; `server` is what was in use of all the server's processors, 0 to 1, and `stolen`
    the part of the machine that its host gave to others.
    """

    point: Point
    gateways: tuple[float, ...]
    workers: tuple[float, ...]
    client: float
    server: float
    stolen: float


def measure(path: Path, models: int, gateways: int, plan: Plan, tool: wrk.Wrk) -> Sample:
    """Serve the file under so many names. Raises BenchmarkError where anything fails."""
    names = [f"{MLP.name}{number}" for number in range(models)]
    options = ["--gateways", str(gateways)]
    for name in names[1:]:
        options += ["--model", f"{name}={path}"]
    others = cpus.roles()  # of servers that whoever calls this has started
    with ExitStack() as stack:
        with pinned(plan.server_cpus):
            server = running(f"{names[0]}={path}", [*options, *plan.serve])
            address = stack.enter_context(server).http
        with tempfile.TemporaryDirectory() as folder, pinned(plan.client_cpus):
            script = _script(names, Path(folder))
            count = max(plan.connections * gateways, plan.threads(models))
            command = [tool.path, "-t", str(plan.threads(models)), "-c", str(count)]
            command += ["-s", str(script), f"http://{address}", "--timeout", f"{wrk.TIMEOUT}s"]
            _load(command, WARM_UP)
            sample = _sample(command, plan, others)
    if (len(sample.gateways), len(sample.workers)) != (gateways, models):
        raise BenchmarkError(
            f"{len(sample.gateways)} gateways and {len(sample.workers)} workers ran; "
            f"there should be {gateways} and {models}"
        )
    return sample


def _sample(command: list[str], plan: Plan, others: Collection[int]) -> Sample:
    known = _roles(others)
    before = {pid: cpus.used(pid) for pid in known}
    server, machine = cpus.machine(plan.server_cpus), cpus.machine(_all(plan))
    client, begun = _children(), time.monotonic()
    point = _load(command, plan.seconds)
    elapsed = time.monotonic() - begun
    after = {pid: cpus.used(pid) for pid in known}
    if _roles(others) != known or not all(after.values()):
        raise BenchmarkError("a process of the server has ended while it was measured")
    share = {pid: (after[pid] - before[pid]) / elapsed for pid in known}
    return Sample(
        point,
        tuple(share[pid] for pid, role in known.items() if role == "gateway"),
        tuple(share[pid] for pid, role in known.items() if role == "worker"),
        (_children() - client) / elapsed / len(plan.client_cpus),
        (cpus.machine(plan.server_cpus)[0] - server[0]) / elapsed / len(plan.server_cpus),
        (cpus.machine(_all(plan))[1] - machine[1]) / elapsed / len(_all(plan)),
    )


def _roles(others: Collection[int]) -> dict[int, str]:
    return {pid: role for pid, role in cpus.roles().items() if pid not in others}


def _load(command: list[str], seconds: int) -> Point:
    return wrk.run([*command, "-d", f"{seconds}s"], seconds).point


def _script(names: list[str], folder: Path) -> Path:
    """wrk's, which sends each model's requests from threads of its own."""
    request = _request()
    body = folder / "body"
    body.write_bytes(request.body)
    lines = [f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in request.headers.items()]
    paths = ", ".join(json.dumps(f"/v2/models/{name}/infer") for name in names)
    lines.append(SPREAD.format(paths=paths))
    script = folder / "post.lua"
    script.write_text(
        wrk.SCRIPT.format(body=json.dumps(str(body)), headers="\n".join(lines), mark=wrk.MARK)
    )
    return script


def _request() -> Request:
    return KServe().request(MLP, "JSON", MLP.rows(1))


def _all(plan: Plan) -> frozenset[int]:
    return plan.server_cpus | plan.client_cpus


def _children() -> float:
    """CPU seconds of the children that have ended: of wrk, while the server runs."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime
