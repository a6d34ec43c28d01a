"""Metrics of a device that nobody can read: kept on its disk, and sent when the link is there.

Counters go on from the server's start, so a snapshot that is lost costs detail, never a count.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prometheus_client import Gauge

from ds_engines.errors import ConfigError
from ds_serve.catalogue.cache import default_root
from ds_serve.extras import installed

if TYPE_CHECKING:
    from ds_serve.settings import Settings

log = logging.getLogger(__name__)

FOLDER = "metrics-push"
SUFFIX = ".otlp.gz"
MOST = 2000
"""Snapshots that wait at most; beyond, every second one of the older half goes."""

waiting = Gauge(
    "ds_metrics_push_waiting",
    "Snapshots of the metrics that could not be sent yet.",
    multiprocess_mode="livemax",
)


def check(endpoint: str) -> None:
    """Raises ConfigError where metrics cannot be sent to it."""
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", endpoint):
        raise ConfigError(
            f"--metrics-push {endpoint}: it must be an address, such as "
            "http://127.0.0.1:4318/v1/metrics"
        )
    if not installed("opentelemetry.proto") or not installed("opentelemetry.sdk"):
        raise ConfigError('--metrics-push needs OpenTelemetry: pip install "ds-serve[otel]"')


async def keep_pushing(settings: Settings) -> None:
    """Until cancelled, if the settings name somewhere."""
    if not settings.metrics_push:
        return
    from ds_serve.edge.otlp_metrics import Sender  # noqa: PLC0415 - an extra

    sender = Sender(settings.metrics_push, settings.id)
    kept = Kept(_folder(settings))
    fresh = asyncio.Event()
    # A link that is cut may keep one waiting: what is counted meanwhile is kept all the same.
    async with asyncio.TaskGroup() as group:
        group.create_task(_keep_adding(sender.snapshot, kept, settings.metrics_push_secs, fresh))
        group.create_task(_keep_sending(sender, kept, settings.metrics_push, fresh))


async def _keep_adding(
    snapshot: Callable[[], bytes], kept: Kept, seconds: float, fresh: asyncio.Event
) -> None:
    failing = False
    while True:
        await asyncio.sleep(seconds)
        try:
            kept.add(await asyncio.to_thread(snapshot))
            failing = False
        except Exception as error:  # metrics are not worth the server
            if not failing:
                log.exception("metrics cannot be kept in %s: %s", kept.folder, error)
            failing = True
        fresh.set()


async def _keep_sending(sender: Sending, kept: Kept, endpoint: str, fresh: asyncio.Event) -> None:
    reached = True
    while True:
        await fresh.wait()
        fresh.clear()
        error = await asyncio.to_thread(kept.send, sender)
        waiting.set(len(kept))
        if bool(error) == reached:
            reached = not error
            _tell(endpoint, error)


def _tell(endpoint: str, error: str) -> None:
    if error:
        log.warning("metrics cannot be sent to %s and are kept: %s", endpoint, error)
    else:
        log.info("metrics that were kept have been sent to %s", endpoint)


def _folder(settings: Settings) -> Path:
    """One for each server of a machine, by its name and its port."""
    if settings.metrics_push_folder:
        return Path(settings.metrics_push_folder).expanduser().absolute()
    return default_root() / FOLDER / f"{settings.id}-{settings.http_port}"


class Sending(Protocol):
    def send(self, snapshot: bytes) -> str:
        """Why it cannot be sent now, "" where it is done with."""


class Kept:
    """Snapshots in a folder, each a file named by its time. Raises OSError where it is not to be
    written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return len(self._files())

    def add(self, snapshot: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{time.time_ns():020d}{SUFFIX}"
        part = file.with_suffix(".part")
        part.write_bytes(snapshot)
        part.replace(file)
        self._thin()

    def send(self, sender: Sending) -> str:
        """The oldest first, until one cannot be sent; why, or ""."""
        for file in self._files():
            try:
                error = sender.send(file.read_bytes())
                if error:
                    return error
                file.unlink()
            except FileNotFoundError:
                continue  # it was one too many
            except OSError as problem:
                return f"{file}: {problem.strerror}"
        return ""

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{SUFFIX}"))

    def _thin(self) -> None:
        files = self._files()
        if len(files) > MOST:
            for file in files[: len(files) // 2 : 2]:
                file.unlink(missing_ok=True)
