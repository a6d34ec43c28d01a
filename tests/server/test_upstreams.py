"""What --model, --upstream-key and --fallback say of models on other servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_engines.errors import ConfigError
from ds_serve.gateway.text_replicas import in_order
from ds_serve.models import resolve
from ds_serve.upstream import Upstream, fallbacks, keys, parse


def test_an_address_is_a_model() -> None:
    source = resolve("cloud=https://api.example.org/v1#big-model")
    assert (source.name, source.task, source.engine) == ("cloud", "text", "upstream")
    assert source.upstream == Upstream("https://api.example.org/v1", "big-model")
    assert resolve("http://host:1/v1#big").name == "big"
    assert parse("unix:/run/a.sock,unix:/run/b.sock#m").urls == [
        "unix:/run/a.sock",
        "unix:/run/b.sock",
    ]


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("https://host/v1", "name it yourself"),
        ("x=https://user:secret@host/v1#m", "--upstream-key"),
        ("x=https:///v1#m", "HOST"),
        ("x=https://host/v1?key=1#m", "HOST"),
        ("x=unix:relative.sock#m", "whole path"),
        ("x=unix:/a,https://host/v1#m", "all alike"),
        ("https://host/model.onnx", "download"),
    ],
)
def test_an_address_that_is_wrong(argument: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        resolve(argument)
    assert "secret" not in str(caught.value)


def test_keys_are_in_files_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text("sk-file\n")
    monkeypatch.setenv("UP_KEY", "sk-env")
    found = keys([f"a={file}", "b=env:UP_KEY"], ["a", "b", "c"])
    assert Upstream("", key=found["a"]).secret() == "sk-file"
    assert Upstream("", key=found["b"]).secret() == "sk-env"
    file.write_text("two\nlines")
    for wrong in (f"a={file}", f"a={file}x", "b=env:NONE", "b=env:sk-12", "x=env:UP_KEY", "a"):
        with pytest.raises(ConfigError, match=r"upstream-key|printable"):
            keys([wrong], ["a", "b"])


def test_stand_ins_make_no_circle() -> None:
    assert fallbacks(["a=b", "b=c"], "abc") == {"a": "b", "b": "c"}
    with pytest.raises(ConfigError, match="a -> b -> c -> a"):
        fallbacks(["a=b", "b=c", "c=a"], "abc")
    with pytest.raises(ConfigError, match="a -> a"):
        fallbacks(["a=a"], "abc")
    with pytest.raises(ConfigError, match="already"):
        fallbacks(["a=b", "a=c"], "abc")
    with pytest.raises(ConfigError, match="no text model 'x'"):
        fallbacks(["a=x"], "abc")


def test_equal_prefixes_go_to_one_replica_until_it_has_too_much() -> None:
    idle = dict.fromkeys("abcd", 0)
    firsts = {bytes([n]): in_order(bytes([n]), idle)[0] for n in range(100)}
    assert set(firsts.values()) == set("abcd"), "prefixes are spread"
    assert all(in_order(prefix, idle)[0] == first for prefix, first in firsts.items())
    prefix, first = next(iter(firsts.items()))
    second = in_order(prefix, idle | {first: 4})[0]
    assert second != first, "it has four, the others none"
    without = {address: 0 for address in idle if address != first}
    assert in_order(prefix, without)[0] == second, "the next is the same where the first is gone"
    kept = sum(in_order(p, without)[0] == f for p, f in firsts.items() if f != first)
    assert kept == sum(f != first for f in firsts.values()), "others stay where they were"
    assert in_order(b"", {"a": 3, "b": 1, "c": 2}) == ["b", "c", "a"]
