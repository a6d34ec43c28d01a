"""What a person sees when the server is ready: addresses, and examples to paste."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ds_serve.supervisor.worker import READY

if TYPE_CHECKING:
    from ds_serve.supervisor.supervisor import Supervisor

log = logging.getLogger(__name__)

# Examples are for pasting: a line is as long as it must be.
# ruff: noqa: E501

CHAT = """\
Try it:

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "temperature": 0, "max_tokens": 50, "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  question = [{{"role": "user", "content": "What is the capital of France?"}}]
  answer = client.chat.completions.create(
      model="{model}", messages=question, temperature=0, max_tokens=50
  )
  print(answer.choices[0].message.content)
"""

TENSOR = """\
Try it:

  curl {url}/v2/models/{model}
  python -c "import tritonclient.grpc as t; print(t.InferenceServerClient('{grpc}').get_model_metadata('{model}'))"
"""


def announce(supervisor: Supervisor) -> None:
    """Print the addresses, what is served and what is not, and an example."""
    host = _reachable(supervisor.settings.host)
    url = f"http://{host}:{supervisor.http_port}"
    grpc = f"{host}:{supervisor.grpc_port}"
    fields = {"http": url, "grpc": grpc}
    log.info("ready", extra={"fields": fields})
    lines = [f"ds-serve is ready: HTTP {url} (docs at {url}/docs), gRPC {grpc}"]
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
    example = CHAT if first.spec and first.spec.task == "text" else TENSOR
    lines += ["", example.format(url=url, grpc=grpc, model=first.name)]
    print("\n".join(lines), flush=True)


def _reachable(host: str) -> str:
    """An address that a client on this machine can use."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]" if ":" in host else host
