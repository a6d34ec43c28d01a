"""`/tokenize` and `/detokenize`, as vLLM's server has them."""

from __future__ import annotations

from typing import Any

from ds_serve.text.bodies import DetokenizeBody, TokenizeBody
from ds_serve.text.conversation import rendered
from ds_serve.text.errors import BadField
from ds_serve.text.plan import Reader, require_template
from ds_serve.text.tools import tools_wanted


def tokenized(fields: TokenizeBody, reader: Reader) -> dict[str, Any]:
    """The token ids of a prompt or a chat, which may be longer than the context."""
    if (fields.prompt is None) == (fields.messages is None):
        raise BadField("prompt", "give either prompt or messages")
    ids = _ids(fields, reader)
    return {
        "count": len(ids),
        "max_model_len": reader.max_seq_len,
        "tokens": ids,
        "token_strs": [reader.tokenizer.spelling(i) for i in ids]
        if fields.return_token_strs
        else None,
    }


def _ids(fields: TokenizeBody, reader: Reader) -> list[int]:
    if fields.messages is None:
        return reader.tokenizer.encode(fields.prompt or "", fields.add_special_tokens)
    require_template(reader.tokenizer)
    tools = tools_wanted(fields.tools, None, parallel=True)
    return reader.tokenizer.render(
        rendered(fields.messages),
        tools.shown if tools is not None else (),
        fields.chat_template_kwargs,
        fields.add_generation_prompt,
    )


def detokenized(fields: DetokenizeBody, reader: Reader) -> dict[str, str]:
    """The text of token ids. Raises BadField for one beyond the vocabulary."""
    size = len(reader.tokenizer.pieces)
    if wrong := [token for token in fields.tokens if token >= size]:
        raise BadField("tokens", f"tokens has id {wrong[0]}; ids are below {size}")
    return {"prompt": reader.tokenizer.decode(fields.tokens)}
