"""What a person is told to paste when the server has started."""

from __future__ import annotations

import ssl
from pathlib import Path

import openai
import pytest
import trustme

from ds_serve.examples import Door, Seen, seen_by_clients
from ds_serve.security.settings import Security
from ds_serve.security.tls import TLS


def issued(folder: Path, *names: str) -> TLS:
    made = trustme.CA().issue_cert(*names)
    made.private_key_pem.write_to_path(folder / "server.key")
    made.cert_chain_pems[0].write_to_path(folder / "server.pem")
    return TLS(str(folder / "server.pem"), str(folder / "server.key"))


def ran(example: str) -> dict[str, object]:
    """What the Python in an example has named, up to its first request."""
    lines = [line.removeprefix("  ") for line in example.splitlines()]
    first = next(i for i, line in enumerate(lines) if line.startswith(("import", "from")))
    last = next(i for i, line in enumerate(lines) if line.startswith("question"))
    named: dict[str, object] = {}
    exec("\n".join(lines[first:last]), named)
    return named


def test_plain() -> None:
    door = Door(Security(), "0.0.0.0", 8000, 8001)
    assert (door.url, door.grpc) == ("http://127.0.0.1:8000", "127.0.0.1:8001")
    example = door.example("chat", "chat")
    assert example.startswith("Try it:")
    assert "curl http://127.0.0.1:8000/v1/chat/completions" in example
    client = ran(example)["client"]
    assert isinstance(client, openai.OpenAI)
    assert str(client.base_url) == "http://127.0.0.1:8000/v1/"
    client.close()


def test_with_keys_and_tls(tmp_path: Path) -> None:
    door = Door(Security(keys="keys.toml", tls=issued(tmp_path, "localhost")), "127.0.0.1", 1, 2)
    example = door.example("chat", "chat")
    assert example.startswith("Try it, with your own KEY:")
    assert f"--cacert {tmp_path}/server.pem -H 'authorization: Bearer KEY' https://loc" in example
    named = ran(example)
    client, tls = named["client"], named["tls"]
    assert isinstance(client, openai.OpenAI)
    assert isinstance(tls, ssl.SSLContext)
    assert (client.api_key, client.base_url.scheme) == ("KEY", "https")
    assert tls.cert_store_stats()["x509"] == 1
    client.close()


@pytest.mark.parametrize(
    ("names", "host", "called"),
    [
        (["models.example"], "0.0.0.0", "models.example"),
        (["models.example", "10.0.0.5"], "10.0.0.5", "10.0.0.5"),
        (["*.example"], "10.0.0.5", "10.0.0.5"),
        (["::1"], "::", "[::1]"),
    ],
)
def test_the_address_is_one_that_the_certificate_is_for(
    tmp_path: Path, names: list[str], host: str, called: str
) -> None:
    assert Door(Security(tls=issued(tmp_path, *names)), host, 1, 2).grpc == f"{called}:2"


def test_a_certificate_that_is_trusted_needs_no_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("models.example")
    made.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = TLS(str(tmp_path / "both.pem"), str(tmp_path / "both.pem"))
    assert seen_by_clients(tls) == Seen(("models.example",), trusted=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert seen_by_clients(tls) == Seen(("models.example",), trusted=True)
    example = Door(Security(tls=tls), "127.0.0.1", 1, 2).example("m", "tensor")
    assert "cacert" not in example
    assert "ssl=True)" in example
