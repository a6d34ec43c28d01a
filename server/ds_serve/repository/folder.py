"""One model's folder of a repository: `config.pbtxt` and numbered version folders."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ds_engines.errors import ConfigError
from ds_serve import text_models
from ds_serve.ensemble.plan import ENSEMBLE
from ds_serve.models import (
    CONFIG,
    PYTHON_MODEL,
    ModelSource,
    is_model_file,
    only_model_in,
    source_of,
)
from ds_serve.repository.admission import Refusal, never
from ds_serve.text_models import Wish

if TYPE_CHECKING:
    from ds_proto.model_config_pb2 import ModelConfig

log = logging.getLogger(__name__)

VERSION = re.compile(r"[1-9][0-9]*")
DEFAULT_STEM = "model"
_ANY = Wish()

Print = Mapping[str, tuple[tuple[str, int, str], ...]]
"""What tells a changed model from one that is as it was: by version (loose files under ""), the
path, size in bytes and time of change, or the like, of each file."""


def read_model(
    folder: Path,
    name: str,
    config: Path | None = None,
    refusal: Refusal = never,
    wish: Wish = _ANY,
) -> list[ModelSource]:
    """The versions of a model that are to be served, the oldest first, then those that `refusal`
    keeps from being served; where the policy wants the latest, older ones take their place.

    `config` stands in place of the folder's own config.pbtxt. Raises ConfigError for a folder or
    configuration that is wrong, OSError for one that cannot be read.
    """
    config = config or _own_config(folder)
    said = None if config is None else read_config(config)
    if config is not None and said is not None and said.name not in ("", name):
        raise ConfigError(
            f"{config}: name is {said.name!r}, but the model's folder is called {name!r}: give "
            "both the same name, or leave the name out"
        )
    if said is not None and config is not None and _is_ensemble(said):
        return [_ensemble(said, name, version, config, folder) for version in _names(folder, said)]
    places, refused = _versions(folder, said, refusal)
    file = "" if said is None else said.default_model_filename
    if said is not None and said.backend == "python":
        file = file or PYTHON_MODEL
    sources = [
        source_of(name, _model_file(place, file), config, version, wish)
        for version, place in places.items()
    ]
    sources += [_refused(name, version, folder, why) for version, why in refused.items()]
    return [msgspec.structs.replace(source, folder=folder) for source in sources]


def fingerprint(folder: Path) -> Print:
    """Of all files in a model's folder. Raises OSError."""
    found: dict[str, list[tuple[str, int, str]]] = {"": []}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and VERSION.fullmatch(path.name):
            found[path.name] = [_stamp(file) for file in sorted(path.rglob("*")) if file.is_file()]
        elif path.is_file():
            found[""].append(_stamp(path))
    return {version: tuple(files) for version, files in found.items()}


def _stamp(file: Path) -> tuple[str, int, str]:
    status = file.stat()
    return str(file), status.st_size, str(status.st_mtime_ns)


def _own_config(folder: Path) -> Path | None:
    path = folder / CONFIG
    return path if path.is_file() else None


def read_config(path: Path) -> ModelConfig:
    """Raises ConfigError that names the field."""
    # Protobuf takes some time to import: models without a configuration need none.
    from ds_engines import config_pbtxt  # noqa: PLC0415

    return config_pbtxt.read(path)


def _refused(name: str, version: str, folder: Path, why: str) -> ModelSource:
    place = folder / version
    return ModelSource(
        name=name, task="tensor", engine="", artifact=place, why="", version=version, refusal=why
    )


def _versions(
    folder: Path, config: ModelConfig | None, refusal: Refusal
) -> tuple[dict[str, Path], dict[str, str]]:
    """The versions that the policy chooses, and where they are; those refused, and why."""
    there = {
        path.name: path
        for path in folder.iterdir()
        if VERSION.fullmatch(path.name) and path.is_dir()
    }
    if not there:
        if text_models.is_folder(folder) or any(map(is_model_file, folder.iterdir())):
            return {"1": folder}, {}
        raise ConfigError(f"{folder} has no folder of a version, such as {folder}/1")
    where = str(folder)
    chosen = list(map(str, choose(map(int, there), config, where)))
    refused: dict[str, str] = {}
    # Nothing can take the place of the only one: its worker finds out, and nobody waits for it.
    while len(there) > 1 and (bad := _reasons(chosen, there, refusal)):
        refused |= bad
        rest = [int(version) for version in there if version not in refused]
        wants = "" if config is None else config.version_policy.WhichOneof("policy_choice")
        if wants == "specific" or not rest:
            chosen = [version for version in chosen if version not in bad]
        else:
            chosen = list(map(str, choose(rest, config, where)))
    return {version: there[version] for version in chosen}, refused


def _reasons(
    versions: Iterable[str], there: Mapping[str, Path], refusal: Refusal
) -> dict[str, str]:
    found = {version: refusal(there[version]) for version in versions}
    return {version: why for version, why in found.items() if why}


def _is_ensemble(config: ModelConfig) -> bool:
    return ENSEMBLE in (config.platform, config.backend)


def _names(folder: Path, config: ModelConfig) -> list[str]:
    """The versions of an ensemble, which need no folder and no file."""
    there = [path.name for path in folder.iterdir() if VERSION.fullmatch(path.name)]
    return [str(each) for each in choose(map(int, there or ["1"]), config, str(folder))]


def _ensemble(
    config: ModelConfig, name: str, version: str, path: Path, folder: Path
) -> ModelSource:
    from ds_serve.ensemble import config as ensembles  # noqa: PLC0415 - as `read_config`

    spec = ensembles.read(config, name, version, path, folder)
    models = ", ".join(dict.fromkeys(step.model for step in spec.steps))
    return ModelSource(
        name=name,
        task="tensor",
        engine=ENSEMBLE,
        artifact=path,
        why=f"{path.name} makes it of the models {models}",
        config=path,
        version=version,
        folder=folder,
        ensemble=spec,
    )


def choose(found: Iterable[int], config: ModelConfig | None, where: str) -> list[int]:
    """Those versions of the ones found that are to be served, the oldest first.

    Raises ConfigError where the policy names none of them.
    """
    there = sorted(found)
    policy = None if config is None else config.version_policy
    match None if policy is None else policy.WhichOneof("policy_choice"):
        case "all":
            return there
        case "specific":
            assert policy is not None
            wanted = sorted(set(policy.specific.versions))
            missing = [version for version in wanted if version not in there]
            has = f"{where} has {', '.join(map(str, there))}"
            if len(missing) == len(wanted):
                raise ConfigError(
                    f"version_policy.specific names the versions {wanted}, none of which is "
                    f"there: {has}"
                )
            if missing:
                log.warning("version_policy.specific names versions %s: %s", missing, has)
            return [version for version in wanted if version in there]
        case "latest":
            assert policy is not None
            return there[-(policy.latest.num_versions or 1) :]
        case _:
            return there[-1:]


def _model_file(folder: Path, name: str) -> Path:
    if not name and text_models.is_folder(folder):
        return folder
    if not name:
        usual = [path for path in folder.iterdir() if path.stem == DEFAULT_STEM]
        usual = [path for path in usual if is_model_file(path)]
        return usual[0] if len(usual) == 1 else only_model_in(folder)
    if Path(name).name != name:
        raise ConfigError(f"default_model_filename is {name!r}; it must be a file's name alone")
    if not (folder / name).exists():
        raise ConfigError(f"{folder} has no file {name!r}, which default_model_filename names")
    return folder / name
