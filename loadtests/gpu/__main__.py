"""Tensor engines on this machine's GPU, part by part; each part writes OUT/PART.json.

    python -m loadtests.gpu check                                  what is missing here
    python -m loadtests.gpu make MODELS                            ResNet-50 in three kinds
    python -m loadtests.gpu run engine server --models MODELS --out OUT
    python -m loadtests.gpu run engine --kinds int8 --models MODELS --out OUT
    python -m loadtests.gpu frameworks --models MODELS --out OUT   ONNX Runtime and PyTorch
    python -m loadtests.gpu all --models MODELS --out OUT          scaling over GPUs, sentences,
                                                                   reloads, faults, shared memory
    python -m loadtests.gpu weights MODELS                         MiniLM's, to carry along
    python3 -m loadtests.gpu.pytorch OUT                           by a Python that has torch
    python -m loadtests.gpu write OUT                              the results as tables

What has no time left, of --minutes, is left out and says so. With --device cpu the frameworks run
on a CPU, to rehearse.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loadtests.gpu import engine, minilm, models, parts, results, serving

LEAST_SECONDS = 60.0
PARTS = ("engine", "server")
ENGINES = ("tensorrt", "onnxruntime", models.TORCH)
NEEDED = (
    "aiohttp", "fastapi", "google.protobuf", "grpc", "grpc_health", "grpc_reflection", "httptools",
    "msgspec", "numpy", "onnx", "onnxruntime", "orjson", "prometheus_client", "pygrpc_native",
    "rich", "uvicorn", "uvloop", "zmq", "cuda.bindings",
)  # fmt: skip
TENSORRT = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings")


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    match given.command:
        case "check":
            return check()
        case "make":
            _make(given.folder)
        case "write":
            print(results.table(given.folder), end="")
        case "run":
            return run(given)
        case "frameworks":
            return frameworks(given)
        case "weights":
            print(minilm.pack(given.folder))
        case "all":
            return parts.run_all(given)
        case "part":
            return parts.run_part(given)
    return 0


def _make(folder: Path) -> None:
    models.make(folder)
    if _there("torch"):
        models.make_program(folder)
    else:
        print("torch is not installed here: no program for PyTorch is made")


def frameworks(given: argparse.Namespace) -> int:
    """Make what is missing, measure each framework that is installed, and print the tables."""
    if not models.path_of(given.models, "int8").is_file():
        models.make(given.models)
    failed, whole, minutes = 0, given.out, given.minutes / 2
    for name in ("onnxruntime", models.TORCH):
        if not _there(name):
            print(f"{name} is not installed here")
            continue
        if name == models.TORCH and not models.path_of(given.models, "", name).is_file():
            models.make_program(given.models)
        given.engine, given.out, given.minutes = name, whole / name, minutes
        given.kinds = [kind for kind in models.kinds_of(name) if kind in given.wanted]
        failed |= run(given)
        print(f"\n{name} on {given.device}\n\n{results.table(given.out)}", flush=True)
    return failed


def check() -> int:
    """Print what is missing; status 1 where something is."""
    missing = [name for name in NEEDED if not _there(name)]
    if not any(map(_there, TENSORRT)):
        missing.append(" or ".join(TENSORRT))
    print("missing:", ", ".join(missing) or "nothing")
    return int(bool(missing))


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def run(given: argparse.Namespace) -> int:
    given.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * given.minutes
    failed = 0
    for part in given.parts:
        for kind in given.kinds:
            if time.monotonic() > until - LEAST_SECONDS:
                print(f"{part} {kind}: left out, for there is no time left")
                continue
            failed += not _part(part, kind, given)
    return int(bool(failed))


def _part(part: str, kind: str, given: argparse.Namespace) -> bool:
    began = time.monotonic()
    try:
        found = _engine(kind, given) if part == "engine" else _server(kind, given)
    except Exception:
        print(f"{part} {kind}: failed\n{traceback.format_exc()}", flush=True)
        return False
    found["took_s"] = round(time.monotonic() - began, 1)
    (given.out / f"{part}-{kind}.json").write_text(json.dumps(found, indent=2))
    print(f"{part} {kind}: {json.dumps(found)}", flush=True)
    return True


def _engine(kind: str, given: argparse.Namespace) -> dict[str, Any]:
    spec = engine.spec_of(given.models, kind, max(given.batches), given.engine, given.level)
    return engine.measured(spec, given.models, given.batches, given.seconds, given.device)


def _server(kind: str, given: argparse.Namespace) -> dict[str, Any]:
    return serving.measured(given.models, kind, given.batches, vars(given), given.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    commands.add_parser("make").add_argument("folder", type=Path)
    commands.add_parser("weights").add_argument("folder", type=Path)
    commands.add_parser("write").add_argument("folder", type=Path)
    command = commands.add_parser("run")
    command.add_argument("parts", nargs="+", choices=PARTS)
    command.add_argument("--kinds", nargs="+", default=models.KINDS, choices=models.KINDS)
    command.add_argument("--engine", default="tensorrt", choices=ENGINES)
    _measuring(command)
    both = commands.add_parser("frameworks")
    both.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    both.add_argument("--kinds", dest="wanted", nargs="+", default=models.KINDS)
    _measuring(both)
    every = commands.add_parser("all")
    every.add_argument("--parts", nargs="+", default=list(parts.LIMITS), choices=parts.LIMITS)
    every.add_argument("--minutes", type=float, default=9.5)
    one = commands.add_parser("part")
    one.add_argument("part", choices=parts.LIMITS)
    one.add_argument("--number", type=int, default=0, help="the GPU")
    one.add_argument("--limit", type=float, default=300.0, help="seconds")
    for command in (every, one):
        _proving(command)
    return parser


def _proving(command: argparse.ArgumentParser) -> None:
    command.add_argument("--models", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    command.add_argument("--gpus", type=int, default=2, help="how many there are")
    command.add_argument("--cycles", type=int, default=50, help="loads and unloads")
    command.add_argument("--seconds", type=float, default=5.0, help="of each measurement")


def _measuring(command: argparse.ArgumentParser) -> None:
    command.add_argument("--models", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--device", default="cuda")
    command.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    command.add_argument("--level", default="", help="the builder's level, 0 to 5")
    command.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    command.add_argument("--minutes", type=float, default=9.5)
    command.add_argument("--clients", type=int, default=4, help="client processes")
    command.add_argument("--singles", type=int, default=256, help="clients with one picture each")
    command.add_argument("--gateways", type=int, default=2)


if __name__ == "__main__":
    sys.exit(main())
