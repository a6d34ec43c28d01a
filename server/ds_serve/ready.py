"""What a person sees when the server is ready: addresses, and examples to paste."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ds_serve import text_models
from ds_serve.examples import Door
from ds_serve.supervisor.worker import READY

if TYPE_CHECKING:
    from ds_engines.spec import ModelSpec
    from ds_serve.supervisor.supervisor import Supervisor

log = logging.getLogger(__name__)


def announce(supervisor: Supervisor) -> None:
    """Print the addresses, what is served and what is not, and an example."""
    settings = supervisor.settings
    door = Door(settings.security, settings.host, supervisor.http_port, supervisor.grpc_port)
    log.info("ready", extra={"fields": {"http": door.url, "grpc": door.grpc}})
    lines = [f"ds-serve is ready: HTTP {door.url} (docs at {door.url}/docs), gRPC {door.grpc}"]
    why = supervisor.why()
    states = supervisor.states()
    ready = [state for state in states if state.state == READY]
    several = {state.name for state in states if state.version not in ("", "1")}
    for state in states:
        says = why[state.name] if state in ready else f"{state.state}: {state.reason}"
        version = f" version {state.version}" if state.name in several and state.version else ""
        lines.append(f"  {state.name}{version}: {says}")
    if not ready:
        print("\n".join([*lines, "  no model is loaded yet"]), flush=True)
        return
    first = next((s for s in ready if s.spec and s.spec.task == "text"), ready[0])
    print("\n".join([*lines, "", door.example(first.name, _kind(first.spec))]), flush=True)


def _kind(spec: ModelSpec | None) -> str:
    """Which example shows what the model does."""
    if spec is None or spec.task != "text":
        return "tensor"
    if spec.engine != text_models.ENCODER:
        return "chat"
    return "classes" if text_models.classifies(spec.artifact) else "vectors"
