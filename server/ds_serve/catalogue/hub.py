"""Models of the Hugging Face hub, or of another server that speaks its language.

`huggingface_hub` says what there is, and reads the settings that its users know: HF_ENDPOINT,
HF_TOKEN (or the token of `hf auth login`), HF_HUB_OFFLINE. It drops what has come of a file when a
process is interrupted, so the bytes are read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ds_engines.errors import LoadError
from ds_serve.catalogue import web
from ds_serve.catalogue.sources import Listing, Part, Unreachable, model_name

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

MAIN = "main"
OTHER_WEIGHTS = (
    "pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.pkl",
)  # fmt: skip
"""The same weights again, in formats that are not read where there is a `.safetensors` file."""

_NO_ACCESS = (401, 403)


class Hub:
    """`model` is "org/name" or "org/name@revision"."""

    def __init__(self, model: str) -> None:
        self._id, _, revision = model.partition("@")
        self._revision = revision or MAIN
        self._commit = ""
        self.where = model
        self.name = model_name(self._id.rpartition("/")[2])

    def list(self) -> Listing:
        info = self._info()
        self._commit = info.sha or self._revision
        parts = [_part(each) for each in info.siblings or ()]
        if any(part.path.endswith(".safetensors") for part in parts):
            parts = [part for part in parts if not _is_other(part.path)]
        return Listing(self._commit, tuple(parts))

    def _info(self) -> ModelInfo:
        from huggingface_hub import HfApi, errors  # noqa: PLC0415 - takes a while to import

        try:
            return HfApi().model_info(
                self._id, revision=self._revision, files_metadata=True, timeout=web.TIMEOUT
            )
        except errors.OfflineModeIsEnabled:
            raise Unreachable(
                f"{self.where} is not here yet, and HF_HUB_OFFLINE forbids to ask the hub for it"
            ) from None
        except errors.HFValidationError as error:
            raise LoadError(f"{self.where} is no id of the hub: {error}") from None
        except errors.GatedRepoError:
            raise LoadError(
                f"{self.where} is gated: ask for access on its page of {_endpoint()}, then set "
                "HF_TOKEN to a token of that account"
            ) from None
        except errors.RevisionNotFoundError:
            raise LoadError(f"{self._id} has no revision {self._revision!r}") from None
        except errors.RepositoryNotFoundError:
            raise LoadError(self._unknown()) from None
        except Exception as error:  # whatever its HTTP library raises
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> LoadError:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in _NO_ACCESS:
            return LoadError(self._unknown())
        said = f"answers {status}" if status else f"cannot be reached: {_line(error)}"
        return Unreachable(f"{self.where} cannot be pulled: {_endpoint()} {said}")

    def _unknown(self) -> str:
        """The hub does not tell a model that is private from one that is not there."""
        if _token():
            return f"{_endpoint()} has no model {self._id}, or HF_TOKEN's account may not read it"
        return (
            f"{_endpoint()} has no model {self._id}, or it is private: then set HF_TOKEN to a "
            "token that may read it"
        )

    def read(self, part: Part, offset: int) -> tuple[int, Iterator[bytes]]:
        from huggingface_hub import hf_hub_url  # noqa: PLC0415

        url = hf_hub_url(self._id, part.key, revision=self._commit)
        token = _token()
        try:
            return web.stream(url, offset, authorization=f"Bearer {token}" if token else "")
        except web.Refused as error:
            if error.status in _NO_ACCESS:
                raise LoadError(
                    f"{self.where} may not be read ({error}): it is private or gated; set HF_TOKEN "
                    "to a token of an account that has access"
                ) from None
            raise LoadError(f"{part.path} of {self.where} cannot be read: {error}") from None


def _part(sibling: RepoSibling) -> Part:
    lfs = sibling.lfs
    return Part(
        path=sibling.rfilename,
        key=sibling.rfilename,
        size=-1 if sibling.size is None else sibling.size,
        sha256=lfs.sha256 if lfs else "",
        git="" if lfs else sibling.blob_id or "",
        # What a commit holds never changes.
        stamp="commit",
    )


def _is_other(path: str) -> bool:
    return any(PurePosixPath(path).match(each) for each in OTHER_WEIGHTS)


def _token() -> str | None:
    from huggingface_hub import get_token  # noqa: PLC0415

    return get_token()


def _endpoint() -> str:
    from huggingface_hub import constants  # noqa: PLC0415

    return constants.ENDPOINT


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
