"""Examples to paste for a server as it was started: with or without keys and TLS."""

from __future__ import annotations

import shlex
import ssl
from ipaddress import ip_address
from typing import NamedTuple

from ds_engines.errors import ConfigError
from ds_serve.security.settings import Security
from ds_serve.security.tls import TLS, http_context

# Examples are for pasting: a line is as long as it must be.
# ruff: noqa: E501

CHAT = """\
  curl{curl} {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "temperature": 0, "max_tokens": 50, "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'

{python}  client = OpenAI(base_url="{url}/v1", api_key="{key}"{trusting})
  question = [{{"role": "user", "content": "What is the capital of France?"}}]
  answer = client.chat.completions.create(
      model="{model}", messages=question, temperature=0, max_tokens=50
  )
  print(answer.choices[0].message.content)
"""

TENSOR = """\
  curl{curl} {url}/v2/models/{model}
  python -c "import tritonclient.grpc as t; print(t.InferenceServerClient('{grpc}'{triton}).get_model_metadata('{model}'{headers}))"
"""

VECTORS = """\
  curl{curl} {url}/v1/embeddings -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "input": ["a text", "another"]}}'

{python}  client = OpenAI(base_url="{url}/v1", api_key="{key}"{trusting})
  answer = client.embeddings.create(model="{model}", input=["a text", "another"])
  print(len(answer.data[0].embedding))
"""

CLASSES = """\
  curl{curl} {url}/v1/classify -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "input": ["a text", "another"]}}'
"""

EXAMPLES = {"chat": CHAT, "tensor": TENSOR, "vectors": VECTORS, "classes": CLASSES}

AUTHORIZATION = "authorization: Bearer KEY"
CERTIFICATE, KEY = "CLIENT.pem", "CLIENT.key"
"""What a person puts own files for, as for KEY."""


class Seen(NamedTuple):
    """What clients of this machine make of a certificate: whom it is for, and whether they trust
    it without being told to.
    """

    names: tuple[str, ...] = ()
    trusted: bool = False


class Door:
    """How clients get in: the addresses, and what they must show and believe."""

    def __init__(self, security: Security, host: str, http_port: int, grpc_port: int) -> None:
        tls = security.tls
        seen = seen_by_clients(tls) if tls.on else Seen()
        host = _called(host, seen)
        self.url = f"{'https' if tls.on else 'http'}://{host}:{http_port}"
        self.grpc = f"{host}:{grpc_port}"
        self._tls = tls
        self._authority = "" if seen.trusted else tls.certificate
        self._keys = bool(security.keys)

    def example(self, model: str, kind: str) -> str:
        """Commands that ask the model. `kind` is one of EXAMPLES."""
        own = ["KEY"] * self._keys + [CERTIFICATE, KEY] * bool(self._tls.client_ca)
        # Whose key and certificate it is to be, nobody knows here.
        said = f"Try it, with your own {', '.join(own)}:" if own else "Try it:"
        filled = EXAMPLES[kind].format(
            model=model, url=self.url, grpc=self.grpc, curl=self._curl(), **self._python()
        )
        return f"{said}\n\n{filled}"

    def _curl(self) -> str:
        flags = ["--cacert", self._authority] if self._authority else []
        if self._tls.client_ca:
            flags += ["--cert", CERTIFICATE, "--key", KEY]
        if self._keys:
            flags += ["-H", AUTHORIZATION]
        return "".join(f" {shlex.quote(flag)}" for flag in flags)

    def _python(self) -> dict[str, str]:
        name, _, value = AUTHORIZATION.partition(": ")
        return {
            "key": "KEY" if self._keys else "none",
            "python": _trust(self._authority, bool(self._tls.client_ca)),
            "trusting": ", http_client=http" if self._authority or self._tls.client_ca else "",
            "triton": self._triton(),
            "headers": f", headers={{{name!r}: {value!r}}}" if self._keys else "",
        }

    def _triton(self) -> str:
        if not self._tls.on:
            return ""
        said = ", ssl=True"
        if self._authority:
            said += f", root_certificates={self._authority!r}"
        if self._tls.client_ca:
            said += f", private_key={KEY!r}, certificate_chain={CERTIFICATE!r}"
        return said


def _trust(authority: str, mutual: bool) -> str:
    """The beginning of a Python example: `http` believes and shows what is needed."""
    if not authority and not mutual:
        return "  from openai import OpenAI\n"
    lines = ["import ssl", "from openai import DefaultHttpxClient, OpenAI"]
    lines.append(f"tls = ssl.create_default_context({f'cafile={authority!r}' * bool(authority)})")
    if authority:
        lines.append("tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN")
    if mutual:
        lines.append(f'tls.load_cert_chain("{CERTIFICATE}", "{KEY}")')
    lines.append("http = DefaultHttpxClient(verify=tls)")
    return "".join(f"  {line}\n" for line in lines)


def _called(host: str, seen: Seen) -> str:
    """The address by which clients of this machine reach the server, and believe that it is it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    if seen.names and host not in seen.names:
        host = next((name for name in seen.names if "*" not in name), host)
    return f"[{host}]" if ":" in host else host


def seen_by_clients(tls: TLS) -> Seen:
    """Shakes hands with a client that believes in this machine's authorities, then with one that
    believes in the certificate itself.
    """
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    own.load_verify_locations(tls.certificate)
    own.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for client, trusted in ((ssl.create_default_context(), True), (own, False)):
        client.check_hostname = False
        try:
            return Seen(_names(http_context(TLS(tls.certificate, tls.key)), client), trusted)
        except (ssl.SSLError, ConfigError):  # one that has run out, say
            continue
    return Seen()


def _names(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[str, ...]:
    """Whom the server's certificate is for. Raises SSLError where the client does not believe it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (ours, theirs, ours):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    certificate = ours.getpeercert() or {}
    entries = certificate.get("subjectAltName", ())
    return tuple(
        str(ip_address(str(entry[1]))) if entry[0] == "IP Address" else str(entry[1])
        for entry in entries
    )
