"""Plans on disk: what one was built from and for, and those that were built here before."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ds_engines import manifest
from ds_engines.base import EngineOptions
from ds_engines.batch_axes import ROWS
from ds_engines.errors import LoadError
from ds_engines.onnx_halves import halved
from ds_engines.precision import AUTO, FP16
from ds_engines.spec import ModelSpec
from ds_engines.tensorrt_builder import BuildOptions, PlanTensor, Shapes, build
from ds_engines.tensorrt_layers import PlanLayer
from ds_engines.tensorrt_library import Library
from ds_engines.tensorrt_progress import Watch
from ds_engines.tensorrt_shapes import parsed
from ds_engines.tensorrt_timings import keep

MAGIC = (b"ptrt", b"vtrt")
"""How plans begin: those of TensorRT, and those that more than one release runs."""

PARAMETER = "tensorrt."
"""What parameters in config.pbtxt begin with that are for the builder."""

SMALL_WORKSPACE = 64
"""MiB that a layer may work in with --memory-efficient; else all that the GPU has."""

log = logging.getLogger(__name__)


class Facts(msgspec.Struct, frozen=True):
    """What is kept beside a plan, as `model.plan.json`. `gpu` is the kind that it is bound to,
    empty for any; `source` the SHA-256 of the ONNX file.
    """

    library: str
    gpu: str
    source: str = ""
    options: BuildOptions = BuildOptions()
    inputs: tuple[PlanTensor, ...] = ()
    outputs: tuple[PlanTensor, ...] = ()
    layers: tuple[PlanLayer, ...] = ()


def is_plan(path: Path) -> bool:
    """Whether the file is a plan, by how it begins."""
    with path.open("rb") as file:
        return file.read(4) in MAGIC


def facts(plan: Path) -> Facts | None:
    """What is known of a plan: from the file beside it, or the manifest that its recipe wrote."""
    beside = plan.with_name(plan.name + ".json")
    try:
        if beside.is_file():
            return msgspec.json.decode(beside.read_bytes(), type=Facts)
        found = manifest.read(plan.parent)
        said = found.measured.get("plan") if found is not None else None
        return None if said is None else msgspec.convert(said, Facts, strict=False)
    except (msgspec.MsgspecError, OSError) as error:
        raise LoadError(f"what is known of {plan} cannot be read: {error}") from error


def misfit(known: Facts | None, library: Library, gpu: str) -> str:
    """Why a plan cannot run here, as far as that is known; empty where it may."""
    if known is None:
        return ""
    if known.library != str(library) and not known.options.compatible:
        return f"it was built by {known.library}, and this is {library}"
    if known.gpu and gpu and known.gpu != gpu:
        return f"it was built for {known.gpu}, and this is {gpu}"
    return ""


def onnx_beside(plan: Path) -> Path | None:
    """The ONNX file to build a plan from anew: of the same name, or the only one in the folder."""
    own = plan.with_suffix(".onnx")
    if own.is_file():
        return own
    others = list(plan.parent.glob("*.onnx"))
    return others[0] if len(others) == 1 else None


def options_of(spec: ModelSpec) -> BuildOptions:
    """What the model's batches and parameters ask of a plan. Raises LoadError."""
    wanted = max(spec.batch.max_batch_size, 1)
    usual = max((size for size in spec.batch.preferred_sizes if size <= wanted), default=wanted)
    # Whether rows join is found out with a few.
    most = wanted if wanted == 1 else max(wanted, ROWS)
    given = {
        key.removeprefix(PARAMETER): value
        for key, value in spec.parameters.items()
        if key.startswith(PARAMETER)
    }
    shapes: dict[str, Shapes] = {}
    for key in [key for key in given if key.startswith("shapes.")]:
        shapes[key.removeprefix("shapes.")] = parsed(given.pop(key), PARAMETER + key)
    values = {"batches": (1, usual, most), "shapes": shapes, **given}
    try:
        return msgspec.convert(values, _Strict, strict=False).options()
    except msgspec.ValidationError as error:
        known = ", ".join(name for name in BuildOptions.__struct_fields__ if name != "batches")
        raise LoadError(
            f"model {spec.name!r}: a parameter that begins with {PARAMETER!r} is wrong: {error}; "
            f"there are {known}"
        ) from error


def granted(options: BuildOptions, said: EngineOptions) -> BuildOptions:
    """With what the operator's flags say where the model's parameters do not."""
    dtype = options.dtype if said.dtype == AUTO else said.dtype
    workspace = options.workspace
    if said.memory_efficient and workspace is None:
        workspace = SMALL_WORKSPACE
    return msgspec.structs.replace(options, dtype=dtype, workspace=workspace)


def prepared(library: Library, source: Path, options: BuildOptions) -> tuple[Path, BuildOptions]:
    """The file to build, and how: where types are the file's alone, FP16 takes another file, which
    is kept. Raises Unsupported and LoadError.
    """
    if options.dtype != FP16 or not library.typed or library.flag("FP16") is not None:
        return source, options
    half = home() / f"{_short(_digest(source), FP16)}.onnx"
    if not half.is_file():
        with _writing():
            keep(half, halved(source))
    return half, msgspec.structs.replace(options, dtype=AUTO)


class _Strict(BuildOptions, frozen=True, forbid_unknown_fields=True):
    def options(self) -> BuildOptions:
        return BuildOptions(**msgspec.structs.asdict(self))


def built(
    library: Library, source: Path, options: BuildOptions, gpu: str, watch: Watch | None = None
) -> Path:
    """The plan of an ONNX file: the one that is kept, or a new one. Raises LoadError."""
    digest = _digest(source)
    plan = _place(library, digest, options, gpu)
    if plan.is_file():
        return plan
    log.info("%s: %s builds a plan, which is kept for the next time", source.name, library)
    timings = home() / f"timings-{_short(str(library), gpu)}"
    with _writing():
        made = build(library, source, options, watch=watch, timing_cache=timings)
        known = Facts(str(library), gpu, digest, options, made.inputs, made.outputs, made.layers)
        keep(plan.with_name(plan.name + ".json"), msgspec.json.encode(known))
        keep(plan, made.plan)
    return plan


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LoadError(
            f"the cache {home()} cannot be written: {error.strerror}; set DS_SERVE_CACHE to a "
            "folder that can be"
        ) from error


def home() -> Path:
    """$DS_SERVE_CACHE/tensorrt, else in $XDG_CACHE_HOME/ds-serve, else in ~/.cache/ds-serve."""
    if own := os.environ.get("DS_SERVE_CACHE"):
        return Path(own).expanduser() / "tensorrt"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ds-serve" / "tensorrt"


def steps(name: str) -> Watch:
    """Logs how far TensorRT is, at every tenth."""
    last = 0

    def watch(phase: str, done: float) -> None:
        nonlocal last
        tenth = int(10 * done)
        if tenth > last:
            last = tenth
            log.info("%s: %d %% of its plan are built (%s)", name, 10 * tenth, phase)

    return watch


def _place(library: Library, digest: str, options: BuildOptions, gpu: str) -> Path:
    said = msgspec.json.encode(options, order="deterministic").decode()
    return home() / f"{_short(digest, str(library), gpu, said)}.plan"


def _short(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _digest(source: Path) -> str:
    """Of the file and of those beside it that have its weights, by the names they usually have."""
    total = hashlib.sha256()
    names = (source.name, f"{source.name}.data", f"{source.stem}.data", f"{source.name}_data")
    for path in (source.with_name(name) for name in names):
        if path.is_file():
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
