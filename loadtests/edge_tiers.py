"""Device, gateway and cloud, each a ds-serve in a network of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from loadtests.edge_drive import Answer
from loadtests.edge_link import Host, Link, Net
from loadtests.edge_models import Models
from loadtests.perf_analyzer import BenchmarkError

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 120.0
STOP_SECONDS = 30.0
PORT = 8000


@dataclass(frozen=True)
class Tier:
    """A server: where it runs, and where it writes its log."""

    host: Host
    log_file: Path
    process: subprocess.Popen[bytes]

    def started(self) -> bool:
        return "ds-serve is ready" in self.log()

    def has(self, model: str) -> bool:
        """Whether that model answers there."""
        try:
            self.get(f"/v2/models/{model}/ready")
        except BenchmarkError:
            return False
        return True

    def get(self, path: str) -> str:
        """What it says at that path, asked on its own host. Raises BenchmarkError."""
        done = subprocess.run(
            self.host.command(_drive("get", f"http://127.0.0.1:{PORT}{path}")),
            capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BenchmarkError(f"{path} cannot be read: {done.stderr[-500:]}")
        return done.stdout

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


@dataclass(frozen=True)
class Tiers:
    """`uplink` joins device and gateway, `backhaul` gateway and cloud."""

    device: Tier
    gateway: Tier
    cloud: Tier
    uplink: Link
    backhaul: Link
    images: Path

    @property
    def direct(self) -> str:
        """The cloud's address as the device knows it."""
        return f"http://{self.backhaul.above}:{PORT}"

    def load(self, url: str, model: str, *words: str) -> subprocess.Popen[str]:
        """Begin to send requests on the device; see `answers`."""
        command = _drive("load", url, model, str(self.images), *words)
        return subprocess.Popen(
            self.device.host.command(command), stdout=subprocess.PIPE, text=True, cwd=ROOT
        )


def answers(load: subprocess.Popen[str]) -> list[Answer]:
    """All of a load's, once it is over. Raises BenchmarkError."""
    output, _ = load.communicate()
    if load.returncode:
        raise BenchmarkError("the load could not be made")
    return [msgspec.json.decode(line, type=Answer) for line in output.splitlines()]


@dataclass(frozen=True)
class Line:
    """What a link is like: seconds one way, and the part of packets that is lost."""

    delay: float
    loss: float


@contextmanager
def running(
    models: Models,
    folder: Path,
    uplink: Line,
    backhaul: Line,
    *,
    rule: str = "",
    device_flags: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> Iterator[Tiers]:
    """All three, ready. `rule`: more of both rules, as &within=1; `flags` are for each server.

    Raises BenchmarkError where one does not start.
    """
    images = folder / "images.npy"
    np.save(images, models.images)
    files, below = models.files, models.below
    with Net() as net, ExitStack() as stack:
        hosts = {name: net.host(name) for name in ("device", "gateway", "cloud")}
        up = net.link(hosts["device"], hosts["gateway"], uplink.delay, uplink.loss)
        back = net.link(hosts["gateway"], hosts["cloud"], backhaul.delay, backhaul.loss)
        net.through(hosts["gateway"])
        net.beyond(hosts["device"], back.above)
        net.beyond(hosts["cloud"], up.below)

        def serve(name: str, *words: str) -> Tier:
            log = folder / f"{name}.log"
            return stack.enter_context(_serving(hosts[name], log, *words, *flags))

        cloud = serve("cloud", "--model", f"large={files['large']}")
        gateway = serve(
            "gateway",
            "--model", f"middle={files['middle']}",
            "--model", f"large=http://{back.above}:{PORT}/v2#large",
            "--escalate", f"middle=large?below={below['middle']:.4f}{rule}",
        )  # fmt: skip
        device = serve(
            "device",
            "--model", f"small={files['small']}",
            "--model", f"middle=http://{up.above}:{PORT}/v2#middle",
            "--escalate", f"small=middle?below={below['small']:.4f}{rule}",
            *device_flags,
        )  # fmt: skip
        tiers = Tiers(device, gateway, cloud, up, back, images)
        _wait_for(tiers)
        yield tiers


@contextmanager
def _serving(host: Host, log_file: Path, *words: str) -> Iterator[Tier]:
    """Not ready yet."""
    command = [sys.executable, "-m", "ds_serve.cli", "--host", "0.0.0.0", "--gateways", "1", *words]
    with log_file.open("wb") as log:
        process = subprocess.Popen(host.command(command), stdout=log, stderr=log)
    try:
        yield Tier(host, log_file, process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(tiers: Tiers) -> None:
    """Until each is ready, and knows the model of the one above it."""
    until = time.monotonic() + START_SECONDS
    for tier, model in ((tiers.cloud, ""), (tiers.gateway, "large"), (tiers.device, "middle")):
        while not (tier.started() and (not model or tier.has(model))):
            if tier.process.poll() is not None or time.monotonic() > until:
                raise BenchmarkError(f"ds-serve is not ready:\n{tier.log()[-2000:]}")
            time.sleep(0.2)


def _drive(*words: str) -> list[str]:
    return [sys.executable, "-m", "loadtests.edge_drive", *words]
