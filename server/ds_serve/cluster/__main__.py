"""Entry of the process that talks to Ray: it asks for the models, and says where they answer."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ds_engines.errors import ConfigError
from ds_serve import child
from ds_serve.cluster.deploy import deploy
from ds_serve.cluster.plan import AgentConfig, Job, revision
from ds_serve.cluster.replica import FAILED
from ds_serve.cluster.told import Told, encode

EVERY = 0.5
"""Seconds from one look at the replicas to the next."""

PATIENCE = 5.0
"""Seconds that the replicas get to say where they are; those that are gone say nothing."""

log = logging.getLogger("ds_serve.cluster")


class Watched:
    """A model as Ray has it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.revision = revision(job)
        self._handle: DeploymentHandle | None = None
        self._known: tuple[str, ...] = ()

    def changed(self) -> bool:
        """Whether its files are others than before."""
        try:
            now = revision(self.job)
        except (ConfigError, OSError) as error:
            log.warning("model %s is not looked at: %s", self.job.name, error)
            return False
        before, self.revision = self.revision, now
        return now != before

    def told(self) -> Told:
        """Where its replicas answer, and what Ray says of them."""
        found = serve.status().applications.get(self.job.application)
        if found is None:
            return Told(self.job.name, (), "the cluster has not begun it")
        answers = self.ask()
        if answers is not None:  # else, where whoever is gone was, no connection can be had
            self._known = tuple(sorted(address for address, _ in answers if address))
        deployments = found.deployments.values()
        message = " ".join(filter(None, (found.message, *(one.message for one in deployments))))
        failed = found.status.value == "DEPLOY_FAILED" and not self._known
        return Told(self.job.name, self._known, reason(message), failed)

    def there(self) -> bool:
        """Whether it runs in this very revision."""
        answers = self.ask()
        return bool(answers) and all(revision == self.revision for _, revision in answers or ())

    def ask(self) -> list[tuple[str, str]] | None:
        """Address and revision of its replicas; None where that is not known."""
        try:
            if self._handle is None:
                self._handle = serve.get_deployment_handle(self.job.name, self.job.application)
            asked = self._handle.broadcast("address")
            found = asked.results(timeout_s=PATIENCE, return_exceptions=True)
        except TimeoutError:
            return None
        except (RayError, RayServeException, KeyError):  # it has none, or is not there
            return []
        return [each for each in found if not isinstance(each, BaseException)]


def reason(message: str) -> str:
    """What a replica said of itself, without what Ray puts around it."""
    said = re.findall(re.escape(FAILED) + r"(.+)", message)
    if said:
        return str(said[-1]).strip()
    lines = [line for line in message.splitlines() if line.strip()]
    return lines[0].strip() if lines else ""


def ask_for(wanted: Sequence[Watched]) -> None:
    if wanted:
        log.info("Ray is asked for: %s", ", ".join(each.job.name for each in wanted))
        deploy([(each.job, each.revision) for each in wanted])


def watch(config: AgentConfig, output: int) -> None:
    """Tell where the replicas are, whenever that has changed."""
    # Its proxies would take ports of every node, and have nothing to do.
    serve.start(proxy_location="Disabled")
    watched = [Watched(job) for job in config.jobs]
    ask_for([each for each in watched if not each.there()])
    last: dict[str, Told] = {}
    looked = time.monotonic()
    while True:
        for each in watched:
            told = each.told()
            if last.get(told.name) != told:
                os.write(output, encode(told))
                last[told.name] = told
        if config.poll and time.monotonic() - looked >= config.poll:
            looked = time.monotonic()
            ask_for([each for each in watched if each.changed()])
        time.sleep(EVERY)


def reach(address: str) -> None:
    """Raises OSError where nobody listens there; Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if "://" not in address and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()


def main() -> int:
    config = child.begin(sys.argv[1], AgentConfig)
    # What libraries print is not for the supervisor.
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        logging.getLogger("ray").setLevel(logging.WARNING)
        reach(config.address)
        ray.init(address=config.address, log_to_driver=False, logging_level=logging.WARNING)
        with suppress(KeyboardInterrupt):
            watch(config, output)
    except (ConnectionError, TimeoutError, socket.gaierror) as error:
        said = str(error).splitlines()[0]
        return child.fail(
            f"--cluster {config.address}: there is no such cluster: {said}", permanent=True
        )
    except Exception as error:  # whatever it is, the next life may do better
        log.debug("the link to Ray", exc_info=True)
        said = (str(error).splitlines() or [""])[0]
        return child.fail(f"the cluster {config.address}: {type(error).__name__}: {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
