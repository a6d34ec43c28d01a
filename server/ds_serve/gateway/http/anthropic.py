"""Anthropic's messages: the same way as OpenAI's requests, and errors of another shape."""

from __future__ import annotations

import orjson

from ds_engines.errors import ServeError
from ds_engines.spec import ModelSpec
from ds_serve.anthropic_errors import error_body
from ds_serve.gateway.http import errors
from ds_serve.gateway.http.answer import Answer
from ds_serve.gateway.http.frame import Out
from ds_serve.gateway.http.openai import OpenAIRoutes, copy, passed_back
from ds_serve.gateway.text_hop import Reply


class AnthropicRoutes(OpenAIRoutes):
    """/v1/messages and what is below it."""

    error_event = b"event: error\ndata: "
    passed_on = (*OpenAIRoutes.passed_on, b"anthropic-version", b"anthropic-beta")

    def refusal(self, error: ServeError) -> Answer:
        return errors.anthropic(error)

    async def copy(self, reply: Reply, out: Out, spec: ModelSpec) -> None:
        """A worker that knows no such path says so in OpenAI's words."""
        if reply.status < 400 or reply.events:
            await copy(reply, out, spec)
            return
        answer = Answer.json(reply.status, _error(reply.status, await reply.read()))
        kept = (b"content-type", b"content-length")
        answer.headers += [each for each in passed_back(reply, spec) if each[0] not in kept]
        await out.whole(answer)


def _error(status: int, body: bytes) -> object:
    """A worker's error as Anthropic's clients know it."""
    try:
        said = orjson.loads(body)
        if said.get("type") == "error":
            return said
        message = str(said["error"]["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        message = body.decode(errors="replace")[:500]
    return error_body(status, message)
