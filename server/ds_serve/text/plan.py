"""From a checked request to jobs for the loop: prompts tokenized and fitted to the context."""

from __future__ import annotations

import msgspec

from ds_engines.openvino_genai import Sampling
from ds_engines.openvino_tokenizer import TextTokenizer
from ds_serve.text.errors import BadField
from ds_serve.text.fields import Wanted
from ds_serve.text.loop_client import Job


def plan(wanted: Wanted, tokenizer: TextTokenizer, max_seq_len: int) -> list[Job]:
    """One job for each choice, prompt by prompt. Raises BadField where a prompt does not fit."""
    prompts = _prompts(wanted, tokenizer, max_seq_len)
    return [
        Job(prompt, _sampling(wanted, len(prompt), choice, max_seq_len))
        for prompt in prompts
        for choice in range(wanted.n)
    ]


def _prompts(wanted: Wanted, tokenizer: TextTokenizer, limit: int) -> list[list[int]]:
    if wanted.chat:
        return [_chat(wanted, tokenizer, limit)]
    return [_prompt(prompt, tokenizer, limit) for prompt in wanted.prompts]


def _chat(wanted: Wanted, tokenizer: TextTokenizer, limit: int) -> list[int]:
    if not tokenizer.has_template:
        message = f"{wanted.model} has no chat template; use /v1/completions"
        raise BadField("messages", message, "unsupported_value")
    size = sum(len(message["content"]) for message in wanted.messages)
    _check_size("messages", size, tokenizer, limit)
    ids = tokenizer.render(wanted.messages)
    _check_length("messages", len(ids), limit)
    return ids


def _prompt(prompt: str | list[int], tokenizer: TextTokenizer, limit: int) -> list[int]:
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


def _sampling(wanted: Wanted, prompt: int, choice: int, limit: int) -> Sampling:
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
    seed = (wanted.sampling.seed + choice) & (2**63 - 1)
    return msgspec.structs.replace(wanted.sampling, max_tokens=asked, seed=seed)
