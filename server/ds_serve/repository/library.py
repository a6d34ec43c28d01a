"""All that can be served: the models of `--model`, and the folders of all repositories."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from ds_engines.errors import ConfigError, InvalidRequest, NotFound
from ds_serve.catalogue.cache import default_root
from ds_serve.models import ModelSource, bad_name, is_name
from ds_serve.repository.admission import Refusal, never
from ds_serve.repository.folder import Print, fingerprint, read_model
from ds_serve.repository.remote import Remote, is_address
from ds_serve.text_models import Wish

_ANY = Wish()


class Repository(Protocol):
    """Names are those of folders right below it. What is asked may take long."""

    where: str

    def names(self) -> list[str]:
        """Of all models, also of folders that hold none that can be served."""

    def holds(self, name: str) -> bool:
        """Whether it has a folder of that name."""

    def folder(self, name: str, config: Path | None = None) -> Path:
        """The model's folder; `config` stands in place of its own configuration."""

    def fingerprint(self, name: str) -> Print:
        """What changes when the model does."""


class Folder:
    """A repository on this machine."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise ConfigError(f"--model-repository {path}: there is no such folder")
        self._path = path.absolute()
        self.where = str(self._path)

    def names(self) -> list[str]:
        paths = sorted(path for path in self._path.iterdir() if path.is_dir())
        return [path.name for path in paths if not path.name.startswith(".")]

    def holds(self, name: str) -> bool:
        return (self._path / name).is_dir()

    def folder(self, name: str, config: Path | None = None) -> Path:
        return self._path / name

    def fingerprint(self, name: str) -> Print:
        return fingerprint(self._path / name)


class Library:
    """`sources` are those of `--model`, `repositories` folders and addresses, read anew each time.

    `refusal`: which versions may not be served. `wish`: what the operator says of engines. What
    asks for disks or networks may take long: call it in a thread. Raises ConfigError for a
    repository that is not there, LoadError for an address that does not answer.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        repositories: Sequence[str],
        refusal: Refusal = never,
        wish: Wish = _ANY,
    ) -> None:
        self._refusal, self._wish = refusal, wish
        self._sources = {source.name: source for source in sources}
        lock = threading.Lock()
        self._repositories: list[Repository] = [
            Remote(where, default_root(), lock) if is_address(where) else Folder(Path(where))
            for where in repositories
        ]
        for name in set(self._sources) & set(self._names()):
            raise ConfigError(
                f"the model {name!r} is given by --model and is in a repository too; give it "
                "another name: --model NAME=..."
            )

    def given(self) -> list[str]:
        """Names of the models of `--model`."""
        return list(self._sources)

    def names(self) -> list[str]:
        """Of all models, also of folders that hold none that can be served.

        Raises OSError, LoadError.
        """
        return list(dict.fromkeys([*self._sources, *self._names()]))

    def read(self, name: str, config: Path | None = None) -> list[ModelSource]:
        """The versions of a model that are to be served, the oldest first.

        `config` stands in place of the model's own. Raises InvalidRequest, NotFound, ConfigError,
        LoadError, OSError.
        """
        source = self._sources.get(name)
        if source is not None and source.folder is None:
            return [msgspec.structs.replace(source, config=config or source.config)]
        if source is not None and source.folder is not None:
            return read_model(source.folder, name, config, self._refusal, self._wish)
        repository = self._holder(name)
        if repository is None:
            raise NotFound(f"no model repository has a folder {name!r}")
        return read_model(repository.folder(name, config), name, config, self._refusal, self._wish)

    def fingerprint(self, name: str) -> Print | None:
        """None for a model without a folder. Raises as `read`."""
        source = self._sources.get(name)
        if source is not None:
            return None if source.folder is None else fingerprint(source.folder)
        repository = self._holder(name)
        return None if repository is None else repository.fingerprint(name)

    def _holder(self, name: str) -> Repository | None:
        """The repository that has a model; None where none has it.

        The name may come from anywhere: it is never more than the name of a folder right below a
        repository's. Raises InvalidRequest for another name, ConfigError where two have it.
        """
        if not is_name(name):
            raise InvalidRequest(bad_name(name))
        found = [repository for repository in self._repositories if repository.holds(name)]
        if len(found) > 1:
            several = " and ".join(repository.where for repository in found)
            raise ConfigError(f"several repositories have it: {several}")
        return found[0] if found else None

    def _names(self) -> list[str]:
        return [name for repository in self._repositories for name in repository.names()]
