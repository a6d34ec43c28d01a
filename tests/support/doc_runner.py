"""Runs the blocks of a page, in order and in one folder, as a reader would.

A command that serves models is started on free ports, which take the place of the page's ports in
all that comes after it. One that only names models of the catalogue is not started again and again:
one server with all of these stands in for it on every page.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from doc_blocks import ROOT, Block
from serving import PROGRAM, Server

from ds_serve.catalogue import fetch

SHARED = ("smollm2-135m-instruct", "magika", "all-minilm-l6-v2")
"""The models of the catalogue that the one server for all pages has."""

SECONDS = 120.0
_SERVES = re.compile(r"^(?:ds-serve|ds-models serve) ", re.MULTILINE)
_ENDS = ("--list-models", "--help", "--version")
_PORTS = {"--http-port": 8000, "--grpc-port": 8001, "--metrics-port": 8002}
_PIP = re.compile(r"^pip install (.*)$", re.MULTILINE)
_OURS = re.compile(r"ds-serve(?:\[([a-z,-]+)\])?\Z")
_EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


class PageServer(Server):
    """A command of a page as a process on free ports, started in the page's folder."""

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str]) -> None:
        super().__init__(*words)
        self._words, self._where, self._environment = words, folder, environment
        self.metrics_port = 0

    def start(self) -> PageServer:
        """Start the process and return at once."""
        command = [str(PROGRAM.with_name(self._words[0])), *self._on_free_ports(self._words[1:])]
        with self.log_file.open("wb") as log, self.output_file.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=log, cwd=self._where, env=self._environment
            )
        return self

    def _on_free_ports(self, words: list[str]) -> list[str]:
        """The words with free ports and one gateway, before what is vLLM's."""
        ports = ["--http-port", "0", "--grpc-port", "0", "--gateways", "1"]
        if "--metrics-port" in words:
            self.metrics_port = _free_port()
            ports += ["--metrics-port", str(self.metrics_port)]
        if self._words[0] == "ds-models":
            return [*words, *([] if "--" in words else ["--"]), *ports]
        end = words.index("--") if "--" in words else len(words)
        return [*words[:end], *ports, *words[end:]]

    def here(self, text: str) -> str:
        """The text with this server's ports in place of those that the page gives it."""
        free = {
            "--http-port": self.http.rpartition(":")[2],
            "--grpc-port": self.grpc.rpartition(":")[2],
            "--metrics-port": str(self.metrics_port),
        }
        for flag, usual in _PORTS.items():
            said = self._words[self._words.index(flag) + 1] if flag in self._words else str(usual)
            text = re.sub(rf"\b(localhost|127\.0\.0\.1):{said}\b", rf"\1:{free[flag]}", text)
        return text


@dataclass
class Servers:
    """The one server for all pages, from the first page on that asks for it."""

    folder: Path
    started: list[PageServer] = field(default_factory=list)

    def shared(self) -> PageServer:
        if not self.started:
            for name in SHARED:
                fetch(name)
            flags = [word for name in SHARED for word in ("--model", name)]
            flags += ["--files", str(self.folder / "files")]
            server = PageServer(["ds-serve", *flags], self.folder, _environment(self.folder))
            self.started.append(server)
            server.start().wait_ready()
        return self.started[0]

    def close(self) -> None:
        for server in self.started:
            server.close()


class Workplace:
    """A page's folder, and its servers, the latest of which its commands are for.

    `serves` and `preludes` are what a page says in words rather than in commands: the server, as a
    command, that a block needs, and code before the block; by how the block begins.
    """

    def __init__(
        self, folder: Path, servers: Servers, serves: dict[str, str], preludes: dict[str, str]
    ) -> None:
        self.folder, self._servers = folder, servers
        self._serves, self._preludes = serves, preludes
        self._server: PageServer | None = None
        self._started: dict[str, PageServer] = {}
        self._environment = _environment(folder)

    def run(self, block: Block) -> None:
        """Run the block. Fails with what it said where it does not succeed."""
        for begins, command in self._serves.items():
            if block.text.startswith(begins):
                self._serve(command)
        before = [c for begins, c in self._preludes.items() if block.text.startswith(begins)]
        if block.kind == "python":
            self._call(block, [sys.executable, "-c", self._here("\n".join([*before, block.text]))])
        else:
            self._run_shell(block, before)

    def _run_shell(self, block: Block, before: list[str]) -> None:
        text = "\n".join([*before, _without_pip(block)])
        while found := _next_server(text):
            self._script(block, text[: found.start()])
            command, text = _whole_line(text[found.start() :])
            self._serve(command)
        self._script(block, text)

    def _script(self, block: Block, text: str) -> None:
        if text.strip():
            self._call(block, ["bash", "-euo", "pipefail", "-c", self._here(text)])

    def _call(self, block: Block, command: list[str]) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            text=True,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        log = self._server.log() if self._server else ""
        said = f"{block.name}: {command[-1]}\n{done.stdout}{done.stderr}\n{log[-2000:]}"
        assert done.returncode == 0, said

    def _serve(self, command: str) -> None:
        words = shlex.split(command, comments=True)
        if _shareable(words):
            self._server = self._servers.shared()
            return
        if command not in self._started:
            self._started[command] = PageServer(words, self.folder, self._environment)
            self._started[command].start().wait_ready()
        self._server = self._started[command]

    def _here(self, text: str) -> str:
        return self._server.here(text) if self._server else text

    def close(self) -> None:
        """End the page's own servers; their logs must hold no traceback."""
        logs = [server.log() for server in self._started.values()]
        for server in self._started.values():
            server.close()
        assert not any("Traceback" in log for log in logs), logs


def _environment(folder: Path) -> dict[str, str]:
    """Our programs come first; a status of 400 and more is an error to curl."""
    (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    kept = {key: value for key, value in os.environ.items() if key != "PROMETHEUS_MULTIPROC_DIR"}
    path = os.pathsep.join([str(PROGRAM.parent), os.environ["PATH"]])
    return kept | {"PATH": path, "CURL_HOME": str(folder), "PYTHONWARNINGS": "default"}


def _shareable(words: list[str]) -> bool:
    if words[0] != "ds-serve" or len(words) % 2 == 0:
        return False
    flags = list(zip(words[1::2], words[2::2], strict=True))
    return all(
        flag == "--files" or (flag == "--model" and value in SHARED) for flag, value in flags
    )


def _next_server(text: str) -> re.Match[str] | None:
    """The next command that goes on running."""
    for found in _SERVES.finditer(text):
        if not any(end in _whole_line(text[found.start() :])[0].split() for end in _ENDS):
            return found
    return None


def _whole_line(text: str) -> tuple[str, str]:
    """The first command, with the lines that go on it, and what comes after."""
    found = re.match(r"(?:.*\\\n)*.*\n?", text)
    assert found is not None
    return found[0], text[found.end() :]


def _without_pip(block: Block) -> str:
    """The commands without those that install ds-serve, whose extras must be there."""
    for line in _PIP.findall(block.text):
        for word in shlex.split(line, comments=True):
            found = _OURS.match(word)
            assert found, f"{block.name}: pip install {word}: mark the block as not run"
            unknown = set((found[1] or "").split(",")) - {"", *_EXTRAS}
            assert not unknown, f"{block.name}: there is no extra {unknown}"
    return _PIP.sub("", block.text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
