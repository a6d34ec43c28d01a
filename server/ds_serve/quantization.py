"""`--quantization RECIPE`: ONNX files are made smaller, and judged, before they are served.

`ds-quantize` does it, as a program of its own. What it makes is kept in the cache, in a folder
whose name is a hash over all that it was made from, and served from there the next time.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from ds_engines import manifest
from ds_engines.errors import ConfigError, LoadError
from ds_serve import __version__
from ds_serve.catalogue import Progress, prune
from ds_serve.catalogue.cache import default_root, keep_made, locked
from ds_serve.models import CONFIG, ModelSource, only_model_in, source_of
from ds_serve.settings import Settings
from ds_serve.text import convert
from ds_serve.text_models import ENCODER, OPENVINO, VLLM

log = logging.getLogger(__name__)

ENGINE = "onnxruntime"

# ds-quantize as a program that ends when we do, even when we are killed (1 is PR_SET_PDEATHSIG).
_PROGRAM = (
    "import ctypes, runpy, signal; ctypes.CDLL(None).prctl(1, signal.SIGTERM);"
    "runpy.run_module('ds_quantize.cli', run_name='__main__', alter_sys=True)"
)
_SAYS = "ds-quantize: "
_EXTENDS = re.compile(r"""^extends:\s*["']?([^"'#\s]+)""", re.MULTILINE)
_EXTERNAL = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])")
"""How a tensor of an ONNX file says that its values are in another: an entry with that key, and the
length of the other's name."""


def quantized(settings: Settings, sources: Sequence[ModelSource]) -> list[ModelSource]:
    """The models as `--quantization` wants them; one that does not pass its gate has a `refusal`.

    Shows progress on stderr. Raises ConfigError for what cannot be quantized, and why.
    """
    if not settings.quantization:
        return list(sources)
    if sources and all(source.engine == VLLM for source in sources):
        return list(sources)  # it does that itself, by a method of its own
    rest = [source for source in sources if not _done(settings, source)]
    if sources and not rest:
        return list(sources)
    for source in rest:
        check(settings, source)
    if settings.model_repository:
        raise ConfigError(
            f"--quantization {settings.quantization} is for files of --model; for a model of a "
            f"repository use: ds-quantize FILE --recipe {settings.quantization} -o "
            f"{settings.model_repository[0]}/NAME"
        )
    if not (settings.calibration or settings.evaluation):
        raise ConfigError(
            f"--quantization {settings.quantization} needs data to measure ranges on and to judge "
            "the result by: give --calibration DATA, and --evaluation DATA"
        )
    return [_quantized(settings, source) if source in rest else source for source in sources]


def _done(settings: Settings, source: ModelSource) -> bool:
    """Whether it is a text model whose weights were made smaller when it was converted."""
    return source.engine == OPENVINO and settings.quantization == convert.weights_of(
        source.artifact
    )


def check(settings: Settings, source: ModelSource) -> None:
    """Raise ConfigError for a model that cannot be quantized when the server starts."""
    said = f"--quantization {settings.quantization}"
    if source.engine == VLLM:
        raise ConfigError(
            f"{said} is for all models, but {source.name!r} runs on vLLM, whose methods are others "
            f"than the recipes for ONNX files; give it its own: --model '{source.name}="
            f"{source.artifact}?quantization=METHOD'"
        )
    if source.engine != ENGINE:
        raise ConfigError(f"{said}: {_why_not(source)}")
    if source.config is not None:
        raise ConfigError(
            f"{said}: model {source.name!r} is configured by {source.config}; add a version to it: "
            f"ds-quantize {source.artifact} --recipe {settings.quantization} -o "
            f"{source.config.parent}"
        )


def _why_not(source: ModelSource) -> str:
    name = source.artifact.name
    if source.engine == ENCODER:
        return f"{name} is an encoder, which is served as it is; --dtype bfloat16 makes it quicker"
    if source.engine != OPENVINO:
        return f"{source.engine} serves {name} as it is; give a file that is quantized already"
    if source.artifact.suffix == ".gguf":
        return (
            f"{name} is a GGUF file, whose weights keep the bits that they have; give one with "
            "fewer, or for int8 and int4 the Hugging Face folder"
        )
    return (
        f"{name} is served as it is; a Hugging Face folder's weights can be made "
        f"{' or '.join(convert.WEIGHTS)}, and ds-quantize makes folders of other kinds"
    )


def _quantized(settings: Settings, source: ModelSource) -> ModelSource:
    root = default_root()
    home = root / "quantized" / _key(settings, source.artifact)
    output = home / source.name
    keep_made(root, "quantized", home.name)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with locked(home / ".lock", lambda: log.info("another process quantizes; waiting for it")):
            if not _whole(output):
                shutil.rmtree(output, ignore_errors=True)
                _run(settings, source, output)
                prune.tidy(root, Progress())
    except OSError as error:
        raise ConfigError(
            f"the cache {home} cannot be written: {error.strerror}; set DS_SERVE_CACHE to a folder "
            "that can be"
        ) from error
    return _judged(settings, source, output)


def _whole(output: Path) -> bool:
    """Whether the result of an earlier start is there as it was made."""
    try:
        manifest.verify(output / "1")
    except LoadError:
        return False
    return True


def _judged(settings: Settings, source: ModelSource, output: Path) -> ModelSource:
    version = output / "1"
    made = manifest.read(version)
    assert made is not None, "it was verified, or has just been made"
    said = f"{source.artifact.name} quantized by the recipe {settings.quantization}"
    if not made.gate.passed and not settings.allow_unverified:
        why = "; ".join(made.gate.reasons)
        return msgspec.structs.replace(
            source,
            refusal=f"{said} did not pass its gate: {why}. The report is "
            f"{version / 'report.html'}; without --quantization the model is served as it is",
        )
    log.info("model %s: %s is %s", source.name, said, version)
    file = only_model_in(version)
    found = source_of(source.name, file, _config(settings, output, made), source.version)
    return msgspec.structs.replace(found, why=f"{said}; {found.why}")


def _config(settings: Settings, output: Path, made: manifest.Manifest) -> Path | None:
    """What says how rows are joined where they were judged so; otherwise the engine finds out."""
    rows = made.measured.get("evaluation", {}).get("joined_rows", 0)
    if not rows:
        return None
    most = min(rows, settings.max_batch_size)
    text = (output / CONFIG).read_text(encoding="utf-8")
    path = output.with_name(f"{most}.pbtxt")
    path.write_text(re.sub(r"(?m)^max_batch_size: \d+", f"max_batch_size: {most}", text))
    return path


def _run(settings: Settings, source: ModelSource, output: Path) -> None:
    """Make the version `output`/1. Raises ConfigError with what `ds-quantize` says."""
    said = f"--quantization {settings.quantization}"
    log.info("model %s: quantizing %s; the next start reuses it", source.name, source.artifact)
    status, last = _call(_words(settings, source.artifact, output))
    if not (output / "1").is_dir():
        raise ConfigError(f"{said}: {last or f'ds-quantize ended with status {status}'}")


def _words(settings: Settings, model: Path, output: Path) -> list[str]:
    evaluation = settings.evaluation or settings.calibration
    words = ["run", str(model), "--recipe", settings.quantization, "--evaluation", evaluation]
    if settings.calibration:
        words += ["--calibration", settings.calibration]
    # One that fails is kept: its report is looked at, and no second start need make it again.
    return [*words, "--output", str(output), "--keep-failed"]


def _call(words: Sequence[str]) -> tuple[int, str]:
    """Exit status, and the error that it ended with; all it prints goes to our stderr."""
    said = ""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, *words],
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as program:
        assert program.stderr is not None
        try:
            for line in program.stderr:
                if line.startswith(_SAYS):
                    said = line.removeprefix(_SAYS).strip()
                else:
                    print(line, end="", file=sys.stderr, flush=True)
        except BaseException:
            program.terminate()
            raise
    return program.returncode, said


def _key(settings: Settings, model: Path) -> str:
    """A hash over the model, the recipe and the data, and what else decides the result."""
    said = (settings.quantization, settings.calibration, settings.evaluation)
    digest = hashlib.sha256(__version__.encode())
    for each in said:
        digest.update(f"\0{each.rpartition('/')[2]}".encode())
    given = [model, *_external(model), *_recipes(settings.quantization)]
    given += (file for data in said[1:] for file in _files(data))
    for path in given:
        digest.update(f"{path.name}\0{manifest.file(path).sha256}\0".encode())
    return digest.hexdigest()[:24]


def _external(model: Path) -> Iterator[Path]:
    """Files beside an ONNX file that may hold its tensors."""
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = {data[at.end() : at.end() + at[1][0]] for at in _EXTERNAL.finditer(data)}
    paths = [model.parent / name.decode(errors="replace") for name in sorted(found)]
    return (path for path in paths if path.is_file())


def _recipes(given: str) -> list[Path]:
    """The file of a recipe that is no name, and those that it extends."""
    found: list[Path] = []
    path = Path(given).expanduser()
    while path.suffix in (".yaml", ".yml") and path.is_file() and path not in found:
        found.append(path)
        above = _EXTENDS.search(path.read_text(encoding="utf-8", errors="replace"))
        if above is None:
            break
        path = path.parent / above[1]
    return found


def _files(data: str) -> Iterable[Path]:
    """The files of data: one, or all of a folder; of `file.py:function` the Python file."""
    if not data:
        return []
    path = Path(data).expanduser()
    if path.is_dir():
        return sorted(each for each in path.rglob("*") if each.is_file())
    if not path.is_file() and ":" in data:
        path = Path(data.rpartition(":")[0]).expanduser()
    return [path] if path.is_file() else []
