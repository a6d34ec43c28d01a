"""All that can be served: the models of `--model`, and the folders of all repositories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from ds_engines.errors import ConfigError, InvalidRequest, NotFound
from ds_serve.models import ModelSource, bad_name, is_name
from ds_serve.repository.folder import Print, fingerprint, read_model


class Library:
    """`sources` are those of `--model`, `folders` the repositories, which are read anew each time.

    What asks for disks may take long: call it in a thread. Raises ConfigError for a repository
    that is not there.
    """

    def __init__(self, sources: Sequence[ModelSource], folders: Sequence[Path]) -> None:
        self._sources = {source.name: source for source in sources}
        self._folders = [folder.absolute() for folder in folders]
        for folder in folders:
            if not folder.is_dir():
                raise ConfigError(f"--model-repository {folder}: there is no such folder")
        for name in set(self._sources) & set(self._names()):
            raise ConfigError(
                f"the model {name!r} is given by --model and is in a repository too; give it "
                "another name: --model NAME=..."
            )

    def given(self) -> list[str]:
        """Names of the models of `--model`."""
        return list(self._sources)

    def names(self) -> list[str]:
        """Of all models, also of folders that hold none that can be served. Raises OSError."""
        return list(dict.fromkeys([*self._sources, *self._names()]))

    def read(self, name: str, config: Path | None = None) -> list[ModelSource]:
        """The versions of a model that are to be served, the oldest first.

        `config` stands in place of the model's own. Raises InvalidRequest, NotFound, ConfigError,
        OSError.
        """
        folder = self.folder(name)
        if folder is not None:
            return read_model(folder, name, config)
        if name in self._sources:
            source = self._sources[name]
            return [msgspec.structs.replace(source, config=config or source.config)]
        raise NotFound(f"no model repository has a folder {name!r}")

    def folder(self, name: str) -> Path | None:
        """A model's folder; None where it has none.

        The name may come from anywhere: it is never more than the name of a folder right below a
        repository's. Raises InvalidRequest for another name, ConfigError where two have it.
        """
        if not is_name(name):
            raise InvalidRequest(bad_name(name))
        if name in self._sources:
            return self._sources[name].folder
        found = [folder / name for folder in self._folders if (folder / name).is_dir()]
        if len(found) > 1:
            raise ConfigError(f"several repositories have it: {' and '.join(map(str, found))}")
        return found[0] if found else None

    def fingerprint(self, name: str) -> Print | None:
        """None for a model without a folder. Raises as `folder`, and OSError."""
        folder = self.folder(name)
        return None if folder is None else fingerprint(folder)

    def _names(self) -> list[str]:
        return [
            path.name
            for folder in self._folders
            for path in sorted(folder.iterdir())
            if path.is_dir() and not path.name.startswith(".")
        ]
