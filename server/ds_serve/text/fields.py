"""The bodies of OpenAI's requests, checked once into `Wanted`; every refusal names its field."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from ds_engines.openvino_sampling import Sampling
from ds_serve.text.bodies import MAX_CHOICES, ChatBody, Common, CompletionBody, Stop, convert
from ds_serve.text.conversation import rendered
from ds_serve.text.errors import BadField
from ds_serve.text.formats import Format, wanted_format
from ds_serve.text.tools import ToolsWanted, tools_wanted

MAX_STOPS = 4
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A request that passed every check that needs no tokenizer.

    `max_tokens` None is all that the context leaves. Either `messages` or `prompts` is set.
    `context` has more names for the chat template; `begun` is what the answer begins with.
    """

    chat: bool
    model: str
    stream: bool
    include_usage: bool
    n: int
    stops: tuple[str, ...]
    max_tokens: int | None
    max_tokens_field: str
    logprobs: bool
    sampling: Sampling
    format: Format | None = None
    tools: ToolsWanted | None = None
    echo: bool = False
    cache_salt: bool = False
    messages: tuple[dict[str, Any], ...] = ()
    context: Mapping[str, Any] = {}
    answer: bool = True
    begun: str = ""
    prompts: tuple[str | list[int], ...] = ()


def chat_request(body: bytes) -> Wanted:
    """Check a chat request. Raises InvalidRequest; BadField where a field is at fault."""
    fields = convert(body, ChatBody)
    if fields.top_logprobs > 0:
        raise _unsupported("top_logprobs", fields.top_logprobs, "0")
    if fields.echo:
        raise _unsupported("echo", fields.echo, "false for chats")
    if fields.max_tokens and fields.max_completion_tokens:
        raise BadField("max_tokens", "give max_tokens or max_completion_tokens, not both")
    field = "max_completion_tokens" if fields.max_completion_tokens else "max_tokens"
    limit = fields.max_completion_tokens or fields.max_tokens
    return _wanted(
        fields,
        True,
        limit,
        field,
        fields.logprobs,
        messages=rendered(fields.messages),
        tools=tools_wanted(fields.tools, fields.tool_choice, fields.parallel_tool_calls),
        context=fields.chat_template_kwargs,
        answer=fields.add_generation_prompt,
    )


def completion_request(body: bytes) -> Wanted:
    """Check a completion request. Raises as `chat_request` does."""
    fields = convert(body, CompletionBody)
    if fields.logprobs is not None and fields.logprobs > 1:
        raise _unsupported("logprobs", fields.logprobs, "0 and 1")
    if fields.max_tokens == 0 and not fields.echo:
        raise BadField("max_tokens", "max_tokens: expected `int` >= 1 where echo is false, got 0")
    limit = COMPLETION_TOKENS if fields.max_tokens is None else fields.max_tokens
    prompts = _prompts(fields.prompt)
    if len(prompts) * fields.n > MAX_CHOICES:
        raise BadField("n", f"{len(prompts)} prompts times n {fields.n} is over {MAX_CHOICES}")
    logprobs = fields.logprobs is not None
    return _wanted(fields, False, limit, "max_tokens", logprobs, prompts=prompts)


def _wanted(
    fields: Common, chat: bool, limit: int | None, field: str, logprobs: bool, **prompt: Any
) -> Wanted:
    if fields.stream_options is not None and not fields.stream:
        raise BadField("stream_options", "stream_options is only allowed with stream true")
    if limit is not None and fields.min_tokens > limit:
        raise BadField("min_tokens", f"min_tokens {fields.min_tokens} is over {field} {limit}")
    return Wanted(
        chat=chat,
        model=fields.model,
        stream=fields.stream,
        include_usage=fields.stream_options is not None and fields.stream_options.include_usage,
        n=fields.n,
        stops=_stops(fields.stop),
        max_tokens=limit,
        max_tokens_field=field,
        logprobs=logprobs,
        sampling=_sampling(fields, logprobs),
        format=_format(fields),
        echo=fields.echo,
        cache_salt=bool(fields.cache_salt),
        **prompt,
    )


def _sampling(fields: Common, logprobs: bool) -> Sampling:
    greedy = fields.temperature == 0 or fields.top_p == 0
    return Sampling(
        max_tokens=0,
        temperature=0.0 if greedy else fields.temperature,
        top_p=1.0 if greedy else fields.top_p,
        top_k=max(fields.top_k, 0),
        min_p=fields.min_p,
        seed=(secrets.randbits(63) if fields.seed is None else fields.seed) & (2**63 - 1),
        frequency_penalty=fields.frequency_penalty,
        presence_penalty=fields.presence_penalty,
        repetition_penalty=fields.repetition_penalty,
        logprobs=logprobs,
        ignore_eos=fields.ignore_eos,
        min_tokens=fields.min_tokens,
        stop_tokens=tuple(fields.stop_token_ids),
        echo=fields.echo and logprobs,
        priority=fields.priority,
    )


def _format(fields: Common) -> Format | None:
    names = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
    guided = {name: getattr(fields, name) for name in names}
    return wanted_format(fields.response_format, fields.structured_outputs, guided)


def _stops(stop: Stop) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS:
        raise BadField("stop", f"stop has {len(stops)} strings; at most {MAX_STOPS} are allowed")
    if "" in stops:
        raise BadField("stop", "stop has an empty string")
    return stops


def _prompts(prompt: str | list[Any]) -> tuple[str | list[int], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not prompt:
        raise BadField("prompt", "prompt is an empty list")
    if _is_ids(prompt):
        return (prompt,)
    for at, item in enumerate(prompt):
        if not isinstance(item, str) and not _is_ids(item):
            raise BadField(
                f"prompt[{at}]", f"prompt[{at}] is neither text nor token ids: {item!r:.80}"
            )
    return tuple(prompt)


def _is_ids(item: Any) -> bool:
    return isinstance(item, list) and item != [] and all(type(number) is int for number in item)


def _unsupported(param: str, value: object, offered: str) -> BadField:
    message = f"{param} {value} is not supported: this engine offers {offered} only"
    return BadField(param, message, "unsupported_value")
