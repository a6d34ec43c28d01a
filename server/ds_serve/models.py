"""What `--model X` and `--model NAME=X` mean: which file, under which name, on which engine."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from ds_engines import plugins
from ds_engines.errors import ConfigError
from ds_engines.spec import ModelSpec, Task
from ds_serve import catalogue, tensor_engines, text_models, upstream
from ds_serve.model_files import (
    SUPPORTED,
    Format,
    describe,
    format_of,
    is_foreign,
    is_misnamed,
    is_saved_model,
)
from ds_serve.text_models import Convert, Wish
from ds_serve.upstream import Upstream
from ds_serve.vllm import options as text_options

CONFIG = "config.pbtxt"
PYTHON_MODEL = "model.py"
SUFFIXES = (".onnx", ".gguf", ".xml", ".tflite", ".pdmodel", ".pt2", *tensor_engines.PLANS)
_UNNAMED = ("model", "saved_model", "inference")
"""Files that have their name from their format: the model has its folder's."""

Fetch = Callable[[str], Path]

_NAME = re.compile(r"^[A-Za-z0-9._-]+$")
_HUB_ID = re.compile(r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")
_ANY = Wish()
_ENGINES: dict[Format, tuple[Task, str, str]] = {
    "gguf": ("text", "openvino-genai", "a GGUF text model, so OpenVINO GenAI runs it on the CPU"),
    "openvino": ("tensor", "openvino", "an OpenVINO network, so OpenVINO runs it on the CPU"),
    "tensorflow": ("tensor", "openvino", "a TensorFlow SavedModel, so OpenVINO runs it on the CPU"),
    "tflite": ("tensor", "openvino", "a TensorFlow Lite file, so OpenVINO runs it on the CPU"),
    "paddle": ("tensor", "openvino", "a Paddle model, so OpenVINO runs it on the CPU"),
    "python": ("tensor", "python", "a Python model, so it runs in a Python process of its own"),
}


class ModelSource(msgspec.Struct, frozen=True):
    """One model to serve.

    `artifact` is the model file, `config` the config.pbtxt that describes it, if there is one,
    `why` one sentence for a person: which engine, and why that one. `folder` is the
    model's own, where there is one with a configuration, `scratch` one that goes when the model
    does. `ensemble` is what the model is where it is made of others; then no
    worker runs it. `refusal` says why it may not be served; empty where it may. `upstream` is where
    the model is, where another server has it. `options`: settings of its own, by their names.
    `fallback`: the engine to take where the first one does not take the model; empty for none.
    """

    name: str
    task: Task
    engine: str
    artifact: Path
    why: str
    config: Path | None = None
    version: str = "1"
    folder: Path | None = None
    scratch: Path | None = None
    ensemble: ModelSpec | None = None
    refusal: str = ""
    upstream: Upstream | None = None
    options: text_options.Given = ()
    fallback: str = ""


def resolve(argument: str, *, fetch: Fetch = catalogue.fetch) -> ModelSource:
    """The model that one `--model` argument means; a catalogue model is fetched with `fetch`.

    Raises ConfigError for anything that cannot be served, with what would be right, and what
    `fetch` raises.
    """
    return resolve_all([argument], fetch=fetch)[0]


def resolve_all(
    arguments: Sequence[str],
    *,
    fetch: Fetch = catalogue.fetch,
    wish: Wish = _ANY,
    convert: Convert | None = None,
) -> list[ModelSource]:
    """`resolve` for several; ConfigError where two have one name. Checks all, then fetches, and
    turns folders that their engine cannot read into others with `convert`.
    """
    sources = [_plan(argument, wish) for argument in arguments]
    _require_distinct(source.name for source, _ in sources)
    fetched = [_fetched(source, entry, fetch) for source, entry in sources]
    return [_converted(source, convert) for source in fetched]


def named(argument: str, wish: Wish = _ANY) -> ModelSource:
    """`resolve`, but nothing is fetched: of a catalogue model the artifact is not there yet."""
    return _plan(argument, wish)[0]


def _converted(source: ModelSource, convert: Convert | None) -> ModelSource:
    if convert is None or not text_models.needs_conversion(source.engine, source.artifact):
        return source
    made = convert(source.engine, source.artifact)
    return msgspec.structs.replace(source, artifact=made, why=f"{source.why}, converted to {made}")


def _require_distinct(names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(
                f"{count} models are named {name!r}; give each its own name: --model NAME=..."
            )


def _fetched(source: ModelSource, entry: catalogue.Entry | None, fetch: Fetch) -> ModelSource:
    if entry is None:
        return source
    file = fetch(entry.name)
    # An encoder is a folder: what stands beside its weights says what is made of them.
    whole = source.engine == text_models.ENCODER
    return msgspec.structs.replace(source, artifact=file.parent if whole else file)


def _plan(argument: str, wish: Wish) -> tuple[ModelSource, catalogue.Entry | None]:
    """The source, and the entry to fetch if it is a catalogue model that has no artifact yet."""
    name, value = _split(argument)
    if upstream.is_address(value):
        return _from_address(name, value), None
    value, given = (value, ()) if Path(value).exists() else text_options.split(value)
    wish = wish._replace(engine=text_options.own(given, "engine") or wish.engine)
    source, entry = _known(argument, name, value, wish)
    return msgspec.structs.replace(source, options=_for_text(source, given)), entry


def _known(
    argument: str, name: str | None, value: str, wish: Wish
) -> tuple[ModelSource, catalogue.Entry | None]:
    engines = (*text_models.ENGINES, *tensor_engines.ENGINES)
    if wish.engine not in engines:
        raise ConfigError(f"--engine is {wish.engine!r}; it must be {' or '.join(engines)}")
    if value in catalogue.names():
        entry = catalogue.get(value)
        return _from_catalogue(name or entry.name, entry, wish), entry
    if _is_hub_id(value):
        return _from_hub(name, value, wish.for_text), None
    try:
        return _from_path(name, Path(value).expanduser(), value, wish), None
    except OSError as error:
        raise ConfigError(
            f"--model {argument}: {error.filename} cannot be read: {error.strerror}"
        ) from error


def _for_text(source: ModelSource, given: text_options.Given) -> text_options.Given:
    if given and source.task != "text":
        raise ConfigError(
            f"model {source.name!r} has settings after '?', which are for text models; those of a "
            "tensor model stand in its config.pbtxt"
        )
    return given


def _is_hub_id(value: str) -> bool:
    """Whether it is an organisation and a name, with no folder or file meant."""
    path = Path(value)
    if not _HUB_ID.match(value) or path.exists() or path.parent.is_dir():
        return False
    return path.suffix not in SUFFIXES and not is_foreign(path)


def _from_hub(name: str | None, model: str, wish: Wish) -> ModelSource:
    engine, why = text_models.choose_hub(model, wish)
    return ModelSource(
        name=_require_name(name or model.rpartition("/")[2], Path(model)),
        task="text",
        engine=engine,
        artifact=Path(model),
        why=why,
    )


def _split(argument: str) -> tuple[str | None, str]:
    """NAME and VALUE of "NAME=VALUE"; no name where the argument is a path with "=" in it."""
    name, equals, value = argument.partition("=")
    if not equals or "/" in name or Path(argument).exists():
        name, value = "", argument
    elif not is_name(name):
        raise ConfigError(f"--model {argument}: {bad_name(name)}")
    if not value:
        raise ConfigError(f"--model {argument!r} names no model; {_wanted()}")
    return name or None, value


def _wanted() -> str:
    return f"give a file, a folder or a catalogue name ({', '.join(catalogue.names())})"


def is_name(name: str) -> bool:
    """Whether a model may have this name, which is never a path."""
    return bool(_NAME.match(name)) and name not in {".", ".."}


def bad_name(name: str) -> str:
    """What is wrong with a name that `is_name` refuses."""
    return f"{name!r} cannot be a model's name, which is of letters, digits, '.', '_' and '-'"


def _from_catalogue(name: str, entry: catalogue.Entry, wish: Wish) -> ModelSource:
    engine: str = entry.engine
    what, fallback = _ENGINES["gguf"][2], ""
    if entry.engine == text_models.ENCODER:
        what = text_models.VECTORS
    elif entry.task == "tensor":
        engine, what, fallback = tensor_engines.of_onnx(Path(entry.files[0].name), None, wish)
    return ModelSource(
        name=name,
        task=entry.task,
        engine=engine,
        artifact=Path(entry.files[0].name),
        why=f"{entry.name} of the catalogue is {what}",
        fallback=fallback,
    )


def _from_address(name: str | None, address: str) -> ModelSource:
    found = upstream.parse(address)
    if name is None and not is_name(found.model):
        raise ConfigError(f"--model {address}: name it yourself: --model NAME={address}")
    return ModelSource(
        name=name or found.model,
        task="tensor" if upstream.has_tensors(found) else "text",
        engine=upstream.ENGINE,
        artifact=Path(),
        why=f"{found.model or name} of {found.url}, which is passed what it is asked",
        upstream=found,
    )


def _from_path(name: str | None, path: Path, said: str, wish: Wish) -> ModelSource:
    if not path.exists():
        raise ConfigError(_missing(path, said))
    catalogue.keep(path)
    text = wish.for_text
    named = text.engine == text_models.ENCODER
    if path.is_dir() and text_models.is_folder(path) and (named or not _holds_model(path)):
        return _from_folder(name, path, text)
    file = _model_in(path) if path.is_dir() else path
    file = Path(os.path.normpath(file.absolute()))
    home = _home(file)
    source = source_of(
        _require_name(name or _default_name(file, home), path),
        file,
        _config(file, home),
        file.parent.name if file.parent != home else "1",
        wish,
    )
    if source.engine == text_models.OPENVINO:
        text_models.refuse_file(path, text)
    said_to_be = Path(os.path.normpath(path.absolute()))
    whole = said_to_be == home != file.parent and source.config == home / CONFIG
    return msgspec.structs.replace(source, folder=home if whole else None)


def _from_folder(name: str | None, path: Path, wish: Wish) -> ModelSource:
    folder = Path(os.path.normpath(path.absolute()))
    engine, why = text_models.choose(folder, wish)
    return ModelSource(
        name=_require_name(name or folder.name, path),
        task="text",
        engine=engine,
        artifact=folder,
        why=f"{folder.name} is {why}",
    )


def source_of(
    name: str, file: Path, config: Path | None, version: str, wish: Wish = _ANY
) -> ModelSource:
    """A model by its file, or its folder where that is a text model. Raises ConfigError for one of
    a format that cannot be served.
    """
    if file.is_dir() and text_models.is_folder(file):
        found = _from_folder(name, file, _ANY)
        text_models.require_readable(found.engine, file)
        return msgspec.structs.replace(found, config=config, version=version)
    task, engine, why, fallback = _plugged(file) or _run_by(file, config, wish)
    return ModelSource(
        name=name,
        task=task,
        engine=engine,
        artifact=file,
        config=config,
        why=f"{file.name} is {why}",
        version=version,
        fallback=fallback,
    )


def _run_by(file: Path, config: Path | None, wish: Wish) -> tuple[Task, str, str, str]:
    """Task, engine, why that one, and which one if that does not take it."""
    match found := format_of(file):
        case "onnx":
            return "tensor", *tensor_engines.of_onnx(file, config, wish)
        case "tensorrt":
            return "tensor", *tensor_engines.of_plan(file, wish)
        case "torch" | "torchscript" | "aotinductor":
            return "tensor", *tensor_engines.of_torch(file, found, wish)
    task, engine, why = _ENGINES[found]
    if task == "tensor":
        tensor_engines.refuse_other(file, engine, wish)
    return task, engine, why, ""


def _plugged(file: Path) -> tuple[Task, str, str, str] | None:
    """Of a file that an engine of another package runs."""
    engine = plugins.formats().get(file.suffix.lower())
    if engine is None or not file.is_file():
        return None
    return "tensor", engine, f"a {file.suffix} file, so the engine {engine} runs it", ""


def _require_name(name: str, path: Path) -> str:
    if is_name(name):
        return name
    raise ConfigError(f"{path}: {bad_name(name)}; name it yourself: --model NAME='{path}'")


def _home(file: Path) -> Path:
    """The model's folder: the one above where the file is in a version folder such as `1`."""
    folder = file.parent
    in_version = folder.name.isdecimal() and (
        file.stem in _UNNAMED or (folder.parent / CONFIG).exists()
    )
    return folder.parent if in_version else folder


def _default_name(file: Path, home: Path) -> str:
    return home.name if file.stem in _UNNAMED else file.stem


def _config(file: Path, home: Path) -> Path | None:
    places = (file.parent / CONFIG, home / CONFIG)
    return next((path for path in places if path.is_file()), None)


def _model_in(folder: Path) -> Path:
    """The one model file of a folder, or of its latest version folder."""
    places = (folder, *_versions(folder))
    return only_model_in(next(filter(_model_files, places), folder))


def only_model_in(folder: Path) -> Path:
    """The one model file right in a folder. Raises ConfigError where there are none or several."""
    files = _model_files(folder)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ConfigError(f"the folder {folder} holds several models ({names}); name one of them")
    if files:
        return files[0]
    raise ConfigError(_no_model_in(folder))


def _versions(folder: Path) -> list[Path]:
    """Its version folders (`1`, `2`, ...), the latest first."""
    found = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _model_files(folder: Path) -> list[Path]:
    """By their names, else by their contents. A model.py may stand beside another model as a mere
    script. Text models for OpenVINO are whole folders, of several networks.
    """
    parts = text_models.OPENVINO_PARTS
    there = sorted(path for path in folder.iterdir() if not path.name.startswith(parts))
    named = tensor_engines.preferred(filter(is_model_file, there))
    found = named or list(filter(is_misnamed, there))
    return found or [path for path in (folder / PYTHON_MODEL,) if path.is_file()]


def is_model_file(path: Path) -> bool:
    """Whether its name says that it is a model."""
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or suffix in plugins.formats() or is_saved_model(path)


def is_repository(argument: str) -> bool:
    """Whether a `--model` argument is a folder that holds no model, but folders of models."""
    folder = Path(argument).expanduser()
    try:
        if argument in catalogue.names() or not folder.is_dir() or _holds_model(folder):
            return False
        return any(_holds_model(path) for path in folder.iterdir() if path.is_dir())
    except OSError:
        return False


def _no_model_in(folder: Path) -> str:
    inside = sorted(path.name for path in folder.iterdir())
    if text_models.CONFIG in inside:
        return (
            f"{folder} looks like a Hugging Face folder, but its {text_models.CONFIG} names "
            "neither architectures nor a model_type"
        )
    models = [name for name in inside if (folder / name).is_dir() and _holds_model(folder / name)]
    if models:
        each = " ".join(f"--model {folder / name}" for name in models[:3])
        return f"{folder} holds folders of models; name each: {each}"
    if foreign := next((folder / name for name in inside if is_foreign(Path(name))), None):
        return f"the folder {folder} holds {foreign.name}, {describe(foreign)}; {SUPPORTED}"
    return f"the folder {folder} holds no model file; {SUPPORTED}"


def _holds_model(folder: Path) -> bool:
    return any(_model_files(place) for place in (folder, *_versions(folder)))


def _missing(path: Path, said: str) -> str:
    if "://" in said:
        return f"--model {said}: addresses are not fetched; download the file and give its path"
    if path.name == said and not path.suffix:
        return f"{catalogue.unknown(said)}; nor is there a file or folder of that name here"
    return f"there is no file or folder {said}; {_near(path)}"


def _near(path: Path) -> str:
    """What was meant, perhaps; or the part of the path that is there."""
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.iterdir()])
        if near:
            return f"did you mean {' or '.join(str(path.parent / name) for name in near)}?"
        return f"{path.parent.absolute()} has nothing of a similar name"
    there = next(folder for folder in path.absolute().parents if folder.is_dir())
    return f"of that path only {there} exists"
