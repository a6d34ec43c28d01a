"""The container files keep the promises that docs/containers.md makes."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import onnx_models
import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from serving import Server

from ds_serve import __version__, cli

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "deploy" / "containers"
FILES = sorted(CONTAINERS.glob("Containerfile.*"))
LOCKS = sorted((CONTAINERS / "locks").glob("*.txt"))
SERVED = ROOT / "requirements" / "serve.txt"
HEALTH = CONTAINERS / "health.py"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SECRET = re.compile(r"key(?!ring)|token|secret|passw|credential", re.IGNORECASE)

SERVERS = [file for file in FILES if file.suffix != ".quantize"]

each_file = pytest.mark.parametrize("file", FILES, ids=lambda path: path.suffix[1:])
each_server = pytest.mark.parametrize("file", SERVERS, ids=lambda path: path.suffix[1:])


def steps(file: Path) -> list[tuple[str, str]]:
    """Instructions with what follows them, from the first to the last."""
    parsed = DockerfileParser(fileobj=io.BytesIO(file.read_bytes())).structure
    return [(one["instruction"], one["value"]) for one in parsed if one["instruction"] != "COMMENT"]


def stages(file: Path) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for step in steps(file):
        if step[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(step)
    return found


def last(file: Path, instruction: str) -> str:
    """What the image has of an instruction of which the last one holds."""
    return [value for name, value in stages(file)[-1] if name == instruction][-1]


def runs(file: Path) -> str:
    return "\n".join(value for name, value in steps(file) if name == "RUN")


def variables(file: Path) -> dict[str, str]:
    """ENV of the image."""
    values = [value for name, value in stages(file)[-1] if name == "ENV"]
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(values)))


def pins(lock: Path) -> dict[str, set[str]]:
    """Packages with their versions: several where systems differ."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def extra(name: str) -> list[Requirement]:
    """What an extra of ds-serve asks for, with what it asks for through others."""
    listed = map(Requirement, PROJECT["optional-dependencies"][name])
    return [
        each
        for one in listed
        for each in (extra(*one.extras) if one.name == PROJECT["name"] else [one])
    ]


def test_there_is_one_for_each_kind_of_machine_and_one_that_quantizes() -> None:
    assert [file.suffix for file in FILES] == [".cpu", ".cuda", ".jetson", ".quantize", ".rocm"]


@each_file
def test_hadolint_finds_nothing(file: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", "--failure-threshold", "style", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@each_file
def test_the_image_is_made_in_stages_and_holds_no_tool_of_the_build(file: Path) -> None:
    assert len(stages(file)) >= 2
    copied = [value for name, value in stages(file)[-1] if name == "COPY"]
    own = {value for value in copied if not value.startswith("--from=")}
    assert own <= {"deploy/containers/health.py /opt/ds-serve/health.py"}
    assert "/opt/build" not in " ".join(copied)


@each_file
def test_the_base_is_pinned_by_its_version(file: Path) -> None:
    (base,) = [value for name, value in steps(file) if name == "ARG" and value.startswith("BASE=")]
    assert re.search(r"^BASE=[a-z.]+/\S+:v?\d+\.\d+[\w.-]*$", base)
    bases = {value.split()[0] for name, value in steps(file) if name == "FROM"}
    assert bases == {"${BASE}"}


@each_file
def test_every_package_of_the_index_is_pinned_by_its_hash(file: Path) -> None:
    installs = re.findall(r"\bpip\S*(?: --python \S+)? (?:install|wheel) [^&]*", runs(file))
    loose = [
        line for line in installs if "--require-hashes" not in line and "--no-index" not in line
    ]
    assert installs
    assert loose == []
    named = set(re.findall(r"-r (\S+)", runs(file)))
    there = {f"requirements/{path.name}" for path in SERVED.parent.glob("*.txt")}
    assert named <= there | {f"locks/{path.name}" for path in LOCKS}


@each_file
def test_it_runs_as_nobody_in_particular(file: Path) -> None:
    user = last(file, "USER")
    assert re.fullmatch(r"[1-9]\d{3,}:0", user), "a number, which a cluster can tell from root"
    assert f"useradd --uid {user.partition(':')[0]} --gid 0 " in runs(file)


@each_file
def test_all_that_is_written_has_a_place_outside_of_the_image(file: Path) -> None:
    assert json.loads(last(file, "VOLUME")) == ["/cache"]
    found = variables(file)
    written = {k: v for k, v in found.items() if re.search(r"CACHE|HOME|JIT_DIR", k)}
    assert {"HOME", "XDG_CACHE_HOME", "DS_SERVE_CACHE"} <= written.keys()
    assert [v for v in written.values() if not re.fullmatch(r"/cache(/[\w-]+)?", v)] == []


@each_file
def test_signals_reach_the_program(file: Path) -> None:
    assert "STOPSIGNAL" not in {name for name, _ in steps(file)}
    entry = json.loads(last(file, "ENTRYPOINT"))
    program = "ds-serve" if file in SERVERS else "ds-quantize"
    assert entry[:3] == ["/usr/bin/tini", "--", f"/opt/ds-serve/bin/{program}"]
    assert re.search(r"apt-get install[^&]* tini\b", runs(file))


@each_server
def test_the_command_is_one_that_the_server_knows(file: Path) -> None:
    entry = json.loads(last(file, "ENTRYPOINT"))
    given = cli.parser().parse_args([*entry[3:], *json.loads(last(file, "CMD"))])
    assert given.host == "0.0.0.0"
    ports = [given.http_port, given.grpc_port, 8002]
    assert last(file, "EXPOSE").split() == [str(port) for port in ports]


@each_server
def test_health_is_asked_for_by_our_own_program(file: Path) -> None:
    assert ("COPY", "deploy/containers/health.py /opt/ds-serve/health.py") in stages(file)[-1]
    command = last(file, "HEALTHCHECK").partition("CMD ")[2]
    program = ["/opt/ds-serve/bin/python", "-I", "/opt/ds-serve/health.py"]
    assert json.loads(command) == program


@each_file
def test_no_secret_is_baked_in(file: Path) -> None:
    kept = [value for name, value in steps(file) if name in {"ARG", "ENV", "LABEL", "COPY"}]
    assert [value for value in kept if SECRET.search(value)] == []
    secrets = re.findall(r"--mount=type=secret,\S+", runs(file))
    assert secrets
    assert set(secrets) == {"--mount=type=secret,id=pip,target=/etc/pip.conf"}


@each_file
def test_labels_say_what_it_is(file: Path) -> None:
    labels = last(file, "LABEL")
    names = set(re.findall(r"org\.opencontainers\.image\.([\w.]+)=", labels))
    wanted = {"title", "description", "licenses", "version", "revision", "base.name"}
    assert names == wanted
    assert 'version="${VERSION}"' in labels


def test_the_context_has_what_is_built_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {line[1:] for line in rules if line.startswith("!")}
    assert {path for path in let_in if not (ROOT / path).exists()} == set()
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {"pyproject.toml", "README.md", "LICENSE", "requirements"}
    needed |= {package.partition("/")[0] for package in packages}
    needed |= {"deploy/containers/health.py", "deploy/containers/locks"}
    assert let_in == needed


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_pin_of_the_images_has_a_hash_and_no_place(lock: Path) -> None:
    text = re.sub(r"\\\n|^#.*\n", "", lock.read_text(), flags=re.MULTILINE)
    lines = text.splitlines()
    assert lines
    assert [line for line in lines if not re.search(r"==.*--hash=sha256:[0-9a-f]{64}", line)] == []
    assert not re.search(r"://|--index|--extra-index|--find-links| @ ", text)


@pytest.mark.parametrize("name", ["cuda", "quantize", "tensorrt"])
def test_what_is_installed_beside_the_server_overrides_nothing_of_it(name: str) -> None:
    assert pins(CONTAINERS / "locks" / f"{name}.txt").keys() & pins(SERVED).keys() == set()


@pytest.mark.parametrize("name", ["cuda", "quantize", "tensorrt", "vllm"])
def test_the_pins_are_what_the_project_asks_for(name: str) -> None:
    served = {} if name == "vllm" else pins(SERVED)
    pinned = served | pins(CONTAINERS / "locks" / f"{name}.txt")
    asked = extra(name)
    assert asked
    wrong = {
        str(each): pinned.get(each.name.lower())
        for each in asked
        if not all(each.specifier.contains(one) for one in pinned.get(each.name.lower(), {"0"}))
    }
    assert wrong == {}


def test_what_quantizes_is_what_is_tested() -> None:
    tested = pins(ROOT / "requirements" / "dev.txt")
    pinned = pins(CONTAINERS / "locks" / "quantize.txt")
    assert {name: pinned[name] for name in pinned if pinned[name] != tested.get(name)} == {}


def test_scripts_say_how_they_are_used() -> None:
    for name in ["build", "lock", "prove", "prove-aarch64"]:
        script = CONTAINERS / name
        subprocess.run(["bash", "-n", script], check=True)
        assert "set -euo pipefail" in script.read_text(), name
    done = subprocess.run(
        [CONTAINERS / "build", "vax"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "cpu|quantize|cuda|rocm|jetson" in done.stderr


def test_the_build_passes_on_the_version(tmp_path: Path) -> None:
    """With a program in the engine's place that prints what it is given."""
    done = subprocess.run(
        [CONTAINERS / "build", "cpu", "--build-arg", "BASE=debian:13@sha256:0"],
        env={"PATH": "/usr/bin:/bin", "ENGINE": "echo"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"--tag ds-serve:{__version__}-cpu" in done.stdout
    assert f"--build-arg VERSION={__version__}" in done.stdout
    assert done.stdout.endswith("--build-arg BASE=debian:13@sha256:0 .\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = onnx_models.mlp(tmp_path_factory.mktemp("models") / "mlp.onnx")
    with Server("--model", model) as running:
        yield running


def health(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", HEALTH],
        env={"DS_HEALTH_URL": url, "http_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_health_is_what_the_server_says(server: Server) -> None:
    done = health(server.http + "/health/ready")
    assert (done.returncode, done.stdout[:3], done.stderr) == (0, "200", "")
    done = health(server.http + "/v2/models/missing/ready")
    assert (done.returncode, done.stdout[:3], done.stderr) == (1, "404", "")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/health/ready", "nonsense"])
def test_a_server_that_is_not_there_is_not_healthy(url: str) -> None:
    done = health(url)
    assert done.returncode == 1
    assert done.stdout.startswith(url)
    assert done.stderr == ""
