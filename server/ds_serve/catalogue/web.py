"""Reading over HTTP from any byte on, with keys that no other host gets to see."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from ds_engines.errors import ConfigError
from ds_serve import __version__
from ds_serve.catalogue.sources import Dropped

PIECE = 1 << 20
TIMEOUT = 30.0
"""Seconds of silence after which a connection is given up."""

LARGEST_ANSWER = 16 << 20
"""Bytes of an answer that is read at once."""

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_PARTIAL, _BEYOND = 206, 416


class Refused(Exception):
    """The server answered, and not with what was asked for."""

    def __init__(self, status: int, reason: str, headers: Message, said: bytes = b"") -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.headers = headers
        self.said = said


class Answer(NamedTuple):
    headers: Message
    body: bytes


class _Redirects(urllib.request.HTTPRedirectHandler):
    """urllib drops what was added as unredirected; on the same host the key goes along."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        key = req.unredirected_hdrs.get("Authorization")
        if new is not None and key and _host(new.full_url) == _host(req.full_url):
            new.add_unredirected_header("Authorization", key)
        return new


def _host(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def get(url: str, *, authorization: str = "", accept: str = "*/*") -> Answer:
    """A whole answer. Raises Refused, Dropped."""
    with _open(url, authorization, {"Accept": accept}) as answer:
        return Answer(answer.headers, _whole(answer))


def post(url: str, body: bytes, *, authorization: str = "", timeout: float = TIMEOUT) -> bytes:
    """The answer to a call with a body of JSON. Raises Refused, whose `said` is the answer, and
    Dropped.
    """
    headers = {"Content-Type": "application/json"}
    with _open(url, authorization, headers, body, timeout) as answer:
        return _whole(answer)


def head(url: str, *, authorization: str = "") -> Message:
    """The headers of an answer whose body is not read: not every server takes HEAD.

    Raises as `get`.
    """
    with _open(url, authorization, {"Accept-Encoding": "identity"}) as answer:
        return answer.headers


def stream(
    url: str, offset: int, *, authorization: str = "", tag: str = ""
) -> tuple[int, Iterator[bytes]]:
    """Where reading begins, and what comes: from `offset` on where the server can, and where the
    file still has the entity tag `tag`, if one is given. Raises Refused, Dropped.
    """
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    if offset and tag and not tag.startswith("W/"):
        headers["If-Range"] = tag
    try:
        answer = _open(url, authorization, headers)
    except Refused as error:
        if error.status != _BEYOND:
            raise
        return stream(url, 0, authorization=authorization)
    begins = _begin(answer.headers) if answer.status == _PARTIAL else 0
    return begins, _pieces(answer)


def _begin(headers: Message) -> int:
    """Of "Content-Range: bytes 100-199/200" the 100."""
    said = headers.get("Content-Range", "")
    first = said.removeprefix("bytes ").partition("-")[0]
    if not first.isdecimal():
        raise Dropped(f"the server sent a part of the file and no word of which: {said!r}")
    return int(first)


def _open(
    url: str,
    authorization: str,
    headers: Mapping[str, str],
    body: bytes | None = None,
    timeout: float = TIMEOUT,
) -> http.client.HTTPResponse:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"{url} is no address of a web server")
    request = urllib.request.Request(  # noqa: S310 - http and https alone
        url, body, headers={"User-Agent": f"ds-serve/{__version__}", **headers}
    )
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    with _failures():
        opener = urllib.request.build_opener(_Redirects)
        answer: http.client.HTTPResponse = opener.open(request, timeout=timeout)
        return answer


def _whole(answer: http.client.HTTPResponse) -> bytes:
    with _failures():
        body = answer.read(LARGEST_ANSWER + 1)
    if len(body) > LARGEST_ANSWER:
        raise Dropped(f"the answer has more than {LARGEST_ANSWER} bytes")
    return body


def _pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    with answer, _failures():
        left = answer.length
        while piece := answer.read1(PIECE):
            yield piece
            left = None if left is None else left - len(piece)
        if left:
            raise Dropped(f"the connection ended {left} bytes early")


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error) from None
    except urllib.error.URLError as error:
        raise Dropped(_said(error.reason)) from None
    except (http.client.HTTPException, OSError) as error:
        raise Dropped(_said(error)) from None


def _refusal(error: urllib.error.HTTPError) -> Dropped | Refused:
    reads = error.code in _BUSY and error.headers.get_content_type() != "application/json"
    if reads:
        return Dropped(f"the server answers {error.code} {error.reason}")
    try:
        said = error.read(PIECE)
    except (http.client.HTTPException, OSError):
        said = b""
    return Refused(error.code, str(error.reason), error.headers, said)


def _said(reason: object) -> str:
    if isinstance(reason, ssl.SSLError):
        return f"TLS failed: {getattr(reason, 'verify_message', '') or reason.reason}"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason) or type(reason).__name__
