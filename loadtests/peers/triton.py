"""NVIDIA Triton: the C++ server in PyTriton's wheel, its Python backend calling ONNX Runtime.

The wheel has no ONNX Runtime backend, and that one is built for NVIDIA's containers only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtests.peers.base import APPS, MAX_BATCH, Launch, Setup
from loadtests.peers.dialects import KSERVE, KServe
from loadtests.perf_analyzer import BenchmarkError

CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: {batch}
input {{ name: "{input}" data_type: TYPE_{type} dims: {dims} }}
output {{ name: "{output}" data_type: TYPE_FP32 dims: {out_dims} }}
dynamic_batching {{ }}
instance_group {{ kind: KIND_CPU count: {workers} }}
parameters {{ key: "setup" value {{ string_value: {setup} }} }}
parameters {{ key: "apps" value {{ string_value: {apps} }} }}
"""
PYTHON = """
import json, sys, sysconfig
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "libraries": sysconfig.get_config_var("LIBDIR"),
    "libpython": sysconfig.get_config_var("LDLIBRARY"),
    "packages": sysconfig.get_path("platlib"),
}))
"""


class Triton(KServe):
    key = "triton"
    name = "Triton"
    protocols: Sequence[str] = KSERVE
    settings: Mapping[str, float] = {"workers": 1}
    chosen = (
        "the Python backend calls ONNX Runtime; dynamic batching without delay; one instance, "
        "since a second cost processor time and won no rate"
    )

    def launch(self, setup: Setup) -> Launch:
        found = _python(setup.python)
        libraries, packages = Path(found["libraries"]), Path(found["packages"])
        wheel = packages / "pytriton" / "tritonserver"
        backends = _backends(wheel, found["version"], setup.folder / "backends")
        if not (libraries / found["libpython"]).exists():
            raise BenchmarkError(f"Python has no shared library {libraries / found['libpython']}")
        setup.write()
        repository = _repository(setup)
        return Launch(
            [
                str(wheel / "bin" / "tritonserver"),
                f"--model-repository={repository}",
                f"--backend-directory={backends}",
                f"--http-port={setup.http}",
                f"--grpc-port={setup.grpc}",
                "--http-address=127.0.0.1",
                "--grpc-address=127.0.0.1",
                "--allow-metrics=false",
            ],
            {
                "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{libraries}",
                # The backend's interpreter takes its packages from the first python3 of the path.
                # With those of another, a numpy 2 say, it reads and writes nonsense unnoticed.
                "PATH": f"{setup.python.parent}:{os.environ.get('PATH', os.defpath)}",
            },
        )


def _python(python: Path) -> dict[str, str]:
    """The interpreter's version, and where its library and its packages are."""
    done = subprocess.run([python, "-c", PYTHON], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _backends(wheel: Path, version: str, folder: Path) -> Path:
    """The Python backend with the program for this Python, which it looks for beside itself."""
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        there = sorted(path.name for path in stub.parent.parent.glob("*"))
        raise BenchmarkError(f"the wheel has no backend for Python {version}: {', '.join(there)}")
    shutil.copytree(wheel / "backends" / "python", folder / "python")
    shutil.copy2(stub, folder / "python")
    return folder


def _repository(setup: Setup) -> Path:
    work = setup.work
    folder = setup.folder / "models"
    version = folder / work.name / "1"
    version.mkdir(parents=True)
    shutil.copy2(APPS / "triton_model.py", version / "model.py")
    text = CONFIG.format(
        name=work.name,
        batch=MAX_BATCH,
        input=work.input,
        type=work.datatype,
        dims=list(work.shape),
        output=work.output,
        out_dims=list(work.out_shape),
        workers=setup.workers,
        setup=json.dumps(str(setup.folder / "setup.json")),
        apps=json.dumps(str(APPS)),
    )
    (version.parent / "config.pbtxt").write_text(text)
    return folder
