"""The file of keys, and what is let in."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time

import pytest

from ds_engines.errors import ConfigError, Forbidden, Unauthenticated
from ds_serve.security import key_file
from ds_serve.security.guard import KeyGuard, Kind, OpenGuard
from ds_serve.security.key_text import parse
from ds_serve.security.keys import entry, make

ALICE, BOB = "ds-alice", "ds-bob"


def digest(secret):
    return hashlib.sha256(secret.encode()).hexdigest()


FILE = f"""
[keys.alice]
sha256 = "{digest(ALICE)}"
admin = true

[keys."bob & co"]
sha256 = "{digest(BOB)}"
models = ["magika", "smollm*"]
"""


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text(FILE)
    return file


@pytest.fixture
def guard(file, tmp_path, monkeypatch):
    monkeypatch.setattr(key_file, "LOOK_EVERY", 0.0)
    return KeyGuard(file, tmp_path)


def bearer(secret):
    return f"Bearer {secret}".encode()


def write(file, text):
    """As a careful editor does."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def test_a_key_is_told_by_its_name(guard):
    assert guard.check(bearer(ALICE), "anything", Kind.INFER).name == "alice"
    assert guard.check(f"bearer {BOB}", "magika", Kind.READ).name == "bob & co"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "a key is needed: send it as `Authorization: Bearer KEY`"),
        (b"", "a key is needed"),
        (b"Basic YTpi", "must be sent as `Authorization: Bearer KEY`"),
        (b"Bearer ", "not known to this server"),
        (b"Bearer ds-alicf", "not known to this server"),
        (b"Bearer " + digest(ALICE).encode(), "not known to this server"),
        ("Bearer é", "not known to this server"),
    ],
)
def test_without_a_right_key_nobody_is_let_in(guard, header, message):
    for kind in Kind:
        with pytest.raises(Unauthenticated, match=message):
            guard.check(header, "magika", kind)
    with pytest.raises(Unauthenticated):
        guard.identify(header)


def test_a_key_is_for_its_models(guard):
    for model in ("magika", "smollm2-135m-instruct", ""):
        guard.check(bearer(BOB), model, Kind.INFER)
    caller = guard.check(bearer(BOB), "", Kind.READ)
    assert [caller.allows(name) for name in ("magika", "smollm", "mlp")] == [True, True, False]
    with pytest.raises(Forbidden, match="key 'bob & co' does not allow model 'mlp'"):
        guard.check(bearer(BOB), "mlp", Kind.INFER)
    with pytest.raises(Forbidden, match="does not allow model 'Magika'"):
        guard.check(bearer(BOB), "Magika", Kind.READ)


@pytest.mark.parametrize("kind", [Kind.ADMIN, Kind.CONTROL])
def test_control_is_for_administrators(guard, kind):
    guard.check(bearer(ALICE), "mlp", kind)
    with pytest.raises(Forbidden, match="key 'bob & co' is no administrator's"):
        guard.check(bearer(BOB), "magika", kind)


def test_shared_memory_is_for_keys_that_say_so(guard, file):
    assert guard.check(bearer(ALICE), "", Kind.MEMORY).shares_memory
    assert not guard.check(bearer(BOB), "magika", Kind.INFER).shares_memory
    with pytest.raises(Forbidden, match="key 'bob & co' does not allow shared memory"):
        guard.check(bearer(BOB), "", Kind.MEMORY)
    write(file, FILE + "shared_memory = true\n")
    guard.check(bearer(BOB), "", Kind.MEMORY)


def test_without_keys_everybody_is_let_in_but_to_control():
    guard = OpenGuard()
    assert guard.check(None, "mlp", Kind.INFER).name == ""
    assert guard.identify(b"Bearer x").enter("mlp", Kind.READ).allows("any")
    with pytest.raises(Forbidden, match="the server has no keys"):
        guard.check(None, "mlp", Kind.CONTROL)
    guard.check(None, "", Kind.ADMIN)
    OpenGuard(control=True).check(None, "mlp", Kind.CONTROL)


def test_a_file_that_changes_is_read_again(guard, file):
    stream = guard.identify(bearer(BOB))
    stream.enter("magika", Kind.INFER)
    write(file, f'[keys.carol]\nsha256 = "{digest("ds-carol")}"\n')
    assert guard.check(bearer("ds-carol"), "mlp", Kind.INFER).name == "carol"
    with pytest.raises(Unauthenticated):
        guard.check(bearer(ALICE), "mlp", Kind.INFER)
    with pytest.raises(Unauthenticated, match="not valid any more"):
        stream.enter("magika", Kind.INFER)


@pytest.mark.parametrize("text", ["[keys.alice]\nsha256 = \n", "", None, b"\xff"])
def test_a_file_that_breaks_changes_nothing_and_is_logged_once(guard, file, caplog, text):
    if text is None:
        file.unlink()
    elif isinstance(text, bytes):
        file.write_bytes(text)
    else:
        write(file, text)
    for _ in range(3):
        guard.check(bearer(ALICE), "mlp", Kind.INFER)
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "the keys stay as they were" in record.message
    assert str(file) in record.message
    write(file, FILE.replace("alice", "ann"))
    assert guard.check(bearer(ALICE), "mlp", Kind.INFER).name == "ann"


def test_the_file_is_looked_at_once_a_second_at_most(file, tmp_path, monkeypatch):
    guard = KeyGuard(file, tmp_path)
    write(file, f'[keys.carol]\nsha256 = "{digest("ds-carol")}"\n')
    clock = time.monotonic()
    monkeypatch.setattr(key_file.time, "monotonic", lambda: clock)
    guard.check(bearer(ALICE), "mlp", Kind.INFER)
    clock += 1.1
    with pytest.raises(Unauthenticated):
        guard.check(bearer(ALICE), "mlp", Kind.INFER)


GOOD = f'sha256 = "{digest("x")}"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"f\.toml: there is no key in it"),
        ("[keys]\n", "there is no key in it"),
        ("[key.a]\n", "`keys` and no other, not key"),
        (f"[keys.a]\n{GOOD}\n\n[keys.b\n", "line 4"),
        (f"[keys.a]\n{GOOD}\n[keys.b]\n", "line 3: key 'b': sha256 is missing"),
        ('[keys.a]\nsha256 = "ds-secret"\n', "line 2: key 'a': sha256 must be the 64 hexadecimal"),
        (f"[keys.a]\n{GOOD}\nadmin = 1\n", "line 3: key 'a': admin is 1; it must be true or"),
        (f"[keys.a]\n{GOOD}\nmodels = 'x'\n", "line 3: key 'a': models is 'x'; it must be a list"),
        (f"[keys.a]\n{GOOD}\nadmins = true\n", "line 3: key 'a': admins is unknown; known are"),
        (f"[keys.a]\n{GOOD}\nburst = 3\n", "line 3: key 'a': burst is given without requests_per"),
        (
            f"[keys.a]\n{GOOD}\nconcurrency = 4\n[keys.b]\n{GOOD.replace('f', 'F')}\n"
            "concurrency = 0\n",
            "line 6: key 'b': concurrency is 0; it must be a whole number above 0",
        ),
        (f"[keys.a]\n{GOOD}\n[keys.b]\n{GOOD}\n", "line 4: key 'b': sha256 is that of key 'a' too"),
        ("keys = 3", "there is no key in it"),
        ("[keys]\na = 3", "line 2: key 'a':  is 3; it must be a table"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(text, "f.toml")
    assert "ds-secret" not in str(caught.value)


def test_json_says_the_same():
    text = json.dumps({"keys": {"a": {"sha256": digest("x"), "requests_per_second": 2.5}}})
    key = parse(text, "f.json").find(b"x")
    assert key is not None
    assert (key.name, key.requests_per_second, key.burst) == ("a", 2.5, 3)
    broken = json.dumps({"keys": {"a": {"sha256": digest("x"), "admin": 1}}}, indent=1)
    with pytest.raises(ConfigError, match="line 5: key 'a': admin is 1"):
        parse(broken, "f.json")
    with pytest.raises(ConfigError, match="line 1"):
        parse("{", "f.json")
    with pytest.raises(ConfigError, match="`keys` and no other"):
        parse("[1]", "f.json")


def test_a_made_key_works():
    secret, sha256 = make()
    key = parse(entry('my "own" key', sha256), "f.toml").find(secret.encode())
    assert key is not None
    assert key.name == 'my "own" key'
    assert make()[0] != secret


def test_the_command_makes_a_key():
    run = [sys.executable, "-m", "ds_serve.security", "team a"]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    secret = said.splitlines()[0].rpartition(" ")[2]
    key = parse(said, "f.toml").find(secret.encode())
    assert key is not None
    assert key.name == "team a"


def test_a_file_that_everybody_may_write_is_warned_of(file, tmp_path, caplog):
    os.chmod(file, 0o666)  # noqa: PTH101
    KeyGuard(file, tmp_path)
    assert "everybody on this machine may write keys into it" in caplog.text


def test_a_server_does_not_start_without_its_keys(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: .*No such file"):
        KeyGuard(tmp_path / "none.toml", tmp_path)
