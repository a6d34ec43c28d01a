"""From a checked request to jobs for the loop: prompts tokenized and fitted to the context."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ds_engines.openvino_constraints import Constraint
from ds_engines.openvino_sampling import Sampling
from ds_engines.openvino_tokenizer import TextTokenizer
from ds_engines.openvino_tools import Style
from ds_serve.text.errors import BadField
from ds_serve.text.fields import Wanted
from ds_serve.text.loop_client import Job


class Reader(msgspec.Struct, frozen=True):
    """A model's way with text: its tokenizer, how it writes calls, how long its context is.

    `caches`: whether answers share the cached beginnings of prompts.
    """

    tokenizer: TextTokenizer
    style: Style
    max_seq_len: int
    caches: bool = True


def plan(wanted: Wanted, reader: Reader, lora: str = "") -> list[Job]:
    """One job for each choice, prompt by prompt. Raises BadField where a prompt does not fit."""
    _check_caching(wanted, reader)
    constraint = _constraint(wanted, reader.style)
    sampling = msgspec.structs.replace(wanted.sampling, constraint=constraint, lora=lora)
    return [
        Job(prompt, _sampling(wanted, sampling, len(prompt), choice, reader.max_seq_len))
        for prompt in prompts(wanted, reader)
        for choice in range(wanted.n)
    ]


def _check_caching(wanted: Wanted, reader: Reader) -> None:
    """The library computes nothing for a prompt's cached beginning, and shares it with all."""
    off = "start the server with --prefix-caching=false"
    if reader.caches and wanted.sampling.echo:
        message = f"echo with logprobs needs every token of the prompt computed: {off}"
        raise BadField("echo", message, "unsupported_value")
    if reader.caches and wanted.cache_salt:
        message = f"cache_salt: this engine's prefix cache takes none; {off}"
        raise BadField("cache_salt", message, "unsupported_value")


def _constraint(wanted: Wanted, style: Style) -> Constraint | None:
    asked = wanted.format.constraint if wanted.format is not None else None
    if wanted.tools is None:
        return asked
    if asked is None or wanted.tools.forced:
        return wanted.tools.constraint(style)
    calls = style.constraint(wanted.tools.callable_, not wanted.tools.parallel)
    return Constraint("either", among=(asked, calls))


def prompts(wanted: Wanted, reader: Reader) -> list[list[int]]:
    """The prompts' token ids. Raises BadField for one that leaves no room for an answer."""
    if wanted.chat:
        return [_chat(wanted, reader)]
    return [_prompt(prompt, reader) for prompt in wanted.prompts]


def _chat(wanted: Wanted, reader: Reader) -> list[int]:
    tokenizer, limit = reader.tokenizer, reader.max_seq_len
    _check_size("messages", content_size(wanted.messages), tokenizer, limit)
    ids = chat_ids(wanted, reader)
    _check_length("messages", len(ids), limit)
    return ids


def chat_ids(wanted: Wanted, reader: Reader) -> list[int]:
    """A chat's token ids, however many. Raises BadField for a model that does not chat."""
    tokenizer = reader.tokenizer
    require_template(tokenizer)
    shown = wanted.tools.shown if wanted.tools is not None else ()
    ids = tokenizer.render(wanted.messages, shown, wanted.context, wanted.answer)
    return ids + tokenizer.encode(wanted.begun, False) if wanted.begun else ids


def require_template(tokenizer: TextTokenizer) -> None:
    """Raise BadField for a model that does not chat."""
    if not tokenizer.template:
        message = "the model has no chat template; use /v1/completions"
        raise BadField("messages", message, "unsupported_value")


def content_size(messages: Sequence[dict[str, object]]) -> int:
    """Characters of all messages."""
    return sum(len(str(message["content"])) for message in messages)


def _prompt(prompt: str | list[int], reader: Reader) -> list[int]:
    tokenizer, limit = reader.tokenizer, reader.max_seq_len
    if isinstance(prompt, str):
        _check_size("prompt", len(prompt), tokenizer, limit)
        prompt = tokenizer.encode(prompt)
    wrong = [token for token in prompt if not 0 <= token < len(tokenizer.pieces)]
    if wrong:
        raise BadField(
            "prompt", f"prompt has token id {wrong[0]}; ids are below {len(tokenizer.pieces)}"
        )
    if not prompt:
        raise BadField("prompt", "prompt is empty: it needs at least one token")
    _check_length("prompt", len(prompt), limit)
    return prompt


def _check_size(param: str, characters: int, tokenizer: TextTokenizer, limit: int) -> None:
    """Refuse what cannot fit by its length alone, without the work of tokenizing it."""
    least = characters // tokenizer.longest_piece
    if least >= limit:
        raise _too_long(param, f"at least {least}", limit)


def _check_length(param: str, tokens: int, limit: int) -> None:
    if tokens >= limit:
        raise _too_long(param, str(tokens), limit)


def _too_long(param: str, tokens: str, limit: int) -> BadField:
    message = (
        f"the context is {limit} tokens, prompt and answer together, "
        f"and {param} has {tokens}; shorten it"
    )
    return BadField(param, message, "context_length_exceeded")


def _sampling(wanted: Wanted, sampling: Sampling, prompt: int, choice: int, limit: int) -> Sampling:
    room = limit - prompt
    asked = room if wanted.max_tokens is None else wanted.max_tokens
    if asked > room:
        raise BadField(
            wanted.max_tokens_field,
            f"the context is {limit} tokens: the prompt has {prompt}, which leaves {room}, "
            f"and {wanted.max_tokens_field} is {asked}",
            "context_length_exceeded",
        )
    # Choices of one prompt differ by their seed; the same request gives the same choices.
    seed = (sampling.seed + choice) & (2**63 - 1)
    # The library generates at least one token, which a request for none drops.
    return msgspec.structs.replace(sampling, max_tokens=max(asked, 1), seed=seed)
