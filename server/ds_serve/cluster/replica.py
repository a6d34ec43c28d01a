"""One replica of a model: an actor of Ray's that holds a whole `ds-serve` on its machine."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress

import aiohttp

READY = re.compile(r"^ds-serve is ready: HTTP (\S+) ")
ERROR, NO_MODEL = "ERROR", "no model is left"
WHEN = re.compile(rf"^\S+ {ERROR} +\S+ +")
"""What stands before a message in the log, as text."""

FAILED = "ds-serve failed: "
"""Before the reason, in what a replica says that could not start: Ray puts much around it."""

IN_FLIGHT = "ds_gateway_in_flight_requests"
REQUESTS = "requests"
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")

SECONDS = 10.0
"""How long its server may take to answer a look at it."""

LINES = 40

log = logging.getLogger("ray.serve")


class Replica:
    """Ray Serve makes it, asks for its health and its load, and ends it; requests reach its server
    directly, at `address`.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        model: str,
        arguments: tuple[str, ...],
        host: str,
        base: str,
        drain: float,
        revision: str,
        hide: bool = False,
    ) -> None:
        """`revision`: of the model's files and flags, by which it is told from a later one. `hide`:
        GPUs of its machine, of which none is reserved for it.
        """
        self._base, self._drain, self._revision = base, drain, revision
        self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS))
        self._server = Server(model, arguments, host or _own_address(), _cluster(hide))
        self._url = await self._server.ready()

    async def address(self) -> tuple[str, str]:
        """Where its model answers, "" while it does not; and its revision."""
        answers = await self._status("/health/ready") == 200
        return (self._url + self._base if answers else ""), self._revision

    async def check_health(self) -> None:
        """Raises where Ray had better start another. Its server starts failed workers by itself,
        and ends where that does not help.
        """
        if self._server.ended:
            raise RuntimeError(FAILED + self._server.reason)
        if await self._status("/health/live") != 200:
            raise RuntimeError(f"{FAILED}it does not answer")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Requests that wait and run here."""
        async with self._client.get(f"{self._url}/metrics") as answer:
            text = await answer.text()
        lines = (line for line in text.splitlines() if line.startswith(IN_FLIGHT))
        return {REQUESTS: sum(float(line.rpartition(" ")[2]) for line in lines)}

    async def __del__(self) -> None:
        """Ray has taken it off the list, and the gateways have had time to see that."""
        await self._server.stop(self._drain)
        await self._client.close()

    async def _status(self, path: str) -> int:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._client.get(self._url + path) as answer:
                return answer.status
        return 0


class Server:
    """The process `ds-serve` for one model, on free ports. What it writes goes to Ray's logs."""

    def __init__(
        self, model: str, arguments: tuple[str, ...], host: str, variables: dict[str, str]
    ) -> None:
        own = ["--model", model, "--host", host, "--http-port", "0", "--grpc-port", "0"]
        hidden = ("PROMETHEUS_MULTIPROC_DIR",)
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ds_serve.cluster.child", str(os.getpid()), *own, *arguments],
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._lines: deque[str] = deque(maxlen=LINES)
        self._found = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def reason(self) -> str:
        """Why it ended: the last line that tells of an error, and of which one."""
        told = [line for line in self._lines if ERROR in line or line.startswith("ds-serve: ")]
        telling = [line for line in told if not line.endswith(NO_MODEL)]
        last = (telling or told or list(self._lines) or ["it says nothing"])[-1]
        return WHEN.sub("", last).removeprefix("ds-serve: ")

    async def ready(self) -> str:
        """Its address, once its model answers. Raises RuntimeError where it ends instead."""
        try:
            while not self._found:
                if self.ended and not self._reader.is_alive():
                    raise RuntimeError(FAILED + self.reason)
                await asyncio.sleep(0.05)
        except BaseException:
            self._process.kill()
            raise
        return self._found

    async def stop(self, grace: float) -> None:
        """Let it finish what it has."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace + SECONDS):
                while not self.ended:
                    await asyncio.sleep(0.05)
        self._process.kill()

    def _read(self) -> None:
        assert self._process.stdout is not None, "it is a pipe"
        for line in self._process.stdout:
            self._lines.append(line.rstrip())
            found = READY.match(line)
            if found:
                self._found = found[1]
            sys.stderr.write(line)


def _cluster(hide: bool) -> dict[str, str]:
    """What vLLM's own Ray executor needs to find the cluster, and its node in it; Ray itself hides
    no GPU from who has reserved none.
    """
    import ray  # noqa: PLC0415

    found = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "VLLM_HOST_IP": _own_address()}
    return found | (dict.fromkeys(VISIBLE, "") if hide else {})


def _own_address() -> str:
    """This machine's, by which others of the cluster reach it."""
    import ray.util  # noqa: PLC0415

    return str(ray.util.get_node_ip_address())
