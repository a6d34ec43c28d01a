"""Models in an OCI registry: what ORAS, Docker's model tool or a container build has put there.

The distribution API in the little that reading takes; the blobs can be read from any byte on.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

import msgspec

from ds_engines.errors import ConfigError, LoadError
from ds_serve.catalogue import web
from ds_serve.catalogue.oci_keys import basic, key_for
from ds_serve.catalogue.sources import OCI, Dropped, Listing, Part, Unreachable, model_name

_REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9.-]+(:\d+)?|\[[0-9a-f:]+\](:\d+)?)/"
    r"(?P<repository>[a-z0-9]+([._/-]+[a-z0-9]+)*)"
    r"(:(?P<tag>[\w][\w.-]*))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_SHA256 = "sha256:"
_T = TypeVar("_T")
_NAMES = ("org.opencontainers.image.title", "org.cncf.model.filepath")
"""Annotations of a layer that say which file it is."""

_UNPACK = "io.deis.oras.content.unpack"
_UNNAMED = {"gguf": "model.gguf", "ollama.image.model": "model.gguf", "license": "LICENSE"}
"""What a layer without a name is called, by a part of its media type."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404


class Reference(NamedTuple):
    """Of `host/repository:tag@digest`; `version` is the digest, else the tag."""

    host: str
    repository: str
    version: str

    @property
    def api(self) -> str:
        own = self.host.rpartition(":")[0] or self.host
        scheme = "http" if own in ("localhost", "127.0.0.1", "[::1]") else "https"
        host = "registry-1.docker.io" if self.host == "docker.io" else self.host
        return f"{scheme}://{host}/v2/{self.repository}"


class Layer(msgspec.Struct, rename="camel", frozen=True):
    digest: str
    size: int = -1
    media_type: str = ""
    annotations: dict[str, str] = {}
    platform: dict[str, Any] = {}


class _Manifest(msgspec.Struct, frozen=True):
    layers: tuple[Layer, ...] = ()
    manifests: tuple[Layer, ...] = ()


class Registry:
    """`url`: oci://host/repository:tag, or with @sha256:... in place of the tag or behind it."""

    def __init__(self, url: str) -> None:
        self._reference = _parse(url)
        self._authorization = ""
        self.where = url
        self.name = model_name(self._reference.repository.rpartition("/")[2])

    def list(self) -> Listing:
        digest, manifest = self._manifest(self._reference.version)
        if manifest.manifests:
            digest, manifest = self._manifest(_fitting(manifest.manifests).digest)
        parts = tuple(part for layer in manifest.layers if (part := _part(layer)))
        return Listing(digest, parts)

    def _manifest(self, version: str) -> tuple[str, _Manifest]:
        """Its digest, and what it says."""
        answer = self._get(f"{self._reference.api}/manifests/{version}")
        digest = _SHA256 + hashlib.sha256(answer.body).hexdigest()
        if version.startswith(_SHA256) and digest != version:
            raise LoadError(f"{self.where}: the registry's manifest has the digest {digest}")
        try:
            return digest, msgspec.json.decode(answer.body, type=_Manifest)
        except msgspec.MsgspecError as error:
            raise LoadError(f"{self.where} has a manifest that cannot be read: {error}") from None

    def _get(self, url: str) -> web.Answer:
        try:
            return self._known(
                lambda: web.get(url, authorization=self._authorization, accept=_ACCEPT)
            )
        except Dropped as error:
            raise Unreachable(f"{self.where} cannot be pulled: {error}") from None

    def read(self, part: Part, offset: int) -> tuple[int, Iterator[bytes]]:
        url = f"{self._reference.api}/blobs/{part.key}"
        return self._known(lambda: web.stream(url, offset, authorization=self._authorization))

    def _known(self, ask: Callable[[], _T]) -> _T:
        """What `ask` gives, with a key where the registry wants one: it says so by refusing."""
        try:
            return ask()
        except web.Refused as error:
            if error.status != _UNAUTHORIZED:
                raise self._refused(error) from None
            self._authorization = self._key(error.headers.get("WWW-Authenticate", ""))
        try:
            return ask()
        except web.Refused as error:
            raise self._refused(error) from None

    def _key(self, challenge: str) -> str:
        """The header that the challenge asks for: a password, or a token that one may get."""
        own = key_for(self._reference.host)
        said = dict(_CHALLENGE.findall(challenge))
        if not challenge.lower().startswith("bearer") or "realm" not in said:
            return basic(own) if own else ""
        asked = {key: said[key] for key in ("service", "scope") if key in said}
        asked.setdefault("scope", f"repository:{self._reference.repository}:pull")
        try:
            answer = web.get(
                f"{said['realm']}?{urlencode(asked)}", authorization=basic(own) if own else ""
            )
        except web.Refused as error:
            raise self._refused(error) from None
        token = msgspec.json.decode(answer.body, type=dict[str, Any])
        return f"Bearer {token.get('token') or token.get('access_token')}"

    def _refused(self, error: web.Refused) -> LoadError:
        reference = self._reference
        if error.status == _NOT_FOUND:
            return LoadError(
                f"{reference.host} has no {reference.repository} with {reference.version}"
            )
        if error.status in (_UNAUTHORIZED, _FORBIDDEN):
            return LoadError(
                f"{self.where} may not be read ({error}): it is not there, or needs a login; run "
                f"docker login {reference.host}, or set DOCKER_CONFIG to the folder of config.json"
            )
        return LoadError(f"{self.where} cannot be pulled: {reference.host} answers {error}")


def _parse(url: str) -> Reference:
    found = _REFERENCE.fullmatch(url.removeprefix(OCI))
    if found is None:
        raise ConfigError(
            f"{url} is no address of a registry: give oci://host/repository:tag, such as "
            "oci://ghcr.io/org/model:1.0"
        )
    host, repository = found["host"], found["repository"]
    if host == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    return Reference(host, repository, found["digest"] or found["tag"] or "latest")


def _fitting(manifests: tuple[Layer, ...]) -> Layer:
    """Of an index: the one for this machine, else the first."""
    own = _ARCHITECTURES.get(platform.machine(), platform.machine())
    fits = [each for each in manifests if each.platform.get("architecture") == own]
    return (fits or manifests)[0]


def _part(layer: Layer) -> Part | None:
    """None for a layer that is no file: a configuration, a template of a prompt."""
    kind = layer.media_type
    title = next((layer.annotations[key] for key in _NAMES if key in layer.annotations), "")
    archive = layer.annotations.get(_UNPACK) == "true" or (".tar" in kind and not title)
    archive = archive or (kind.startswith("application/vnd.cncf.model") and ".tar" in kind)
    if archive:
        title = f"layer-{layer.digest.removeprefix(_SHA256)[:12]}.tar"
    title = title or next((name for part, name in _UNNAMED.items() if part in kind), "")
    if not title:
        return None
    return Part(
        path=title,
        key=layer.digest,
        size=layer.size,
        sha256=layer.digest.removeprefix(_SHA256) if layer.digest.startswith(_SHA256) else "",
        stamp=layer.digest,
        archive=archive,
    )
