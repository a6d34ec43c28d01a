"""The memory that a module takes, measured in a process of its own.

As a program (`python -m ds_quantize.torch_methods.memory FOLDER`) it loads the module kept in the
folder, or the `.pt2` that is given beside it, runs the example and prints by how many bytes it grew
at its peak.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from ds_engines.errors import EngineFailure
from ds_quantize import torch_files
from ds_quantize.evaluate.memory import STATUS, forget_peak, status
from ds_quantize.forms import TorchModel
from ds_quantize.torch_methods.modules import example, run

SECONDS = 600


def measured(model: TorchModel, program: Path | None, threads: int) -> int | None:
    """Bytes of the module, or of the `.pt2` made of it; None where the system does not tell.

    Raises EngineFailure where the process fails.
    """
    if not STATUS.is_file():
        return None
    with tempfile.TemporaryDirectory() as folder:
        torch_files.save(model, Path(folder))
        command = [sys.executable, "-W", "ignore", "-m", __name__, folder, str(threads)]
        done = subprocess.run(
            [*command, str(program or "")],
            # The module's class may be in a file that only this process has on its path.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise EngineFailure(f"the module failed in a process of its own: {(lines or [''])[-1]}")
    return int(done.stdout.split()[-1])


def _grown(folder: Path, threads: int, program: str) -> int:
    torch.set_num_threads(threads)
    inputs = example(torch_files.load(folder)) if program else ()
    forget_peak()
    before = status("VmRSS")
    if program:
        module = torch.export.load(program).module()
    else:
        model = torch_files.load(folder)
        module, inputs = model.module, example(model)
    with torch.no_grad():
        run(module, inputs)
    return max(0, status("VmHWM") - before)


if __name__ == "__main__":
    sys.stdout.write(f"\n{_grown(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])}")
