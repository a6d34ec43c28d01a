"""The bodies of requests, field by field: OpenAI's, Jina's and Cohere's, and what vLLM adds."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ds_serve.text.errors import BadField

Input = str | list[str | int | list[int]]
Texts = str | list[str]


class _Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`truncate_prompt_tokens`: -1 is the model's own limit. `priority` is the gateway's."""

    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    truncation: bool = False
    truncation_side: Literal["left", "right"] = "right"
    priority: int = 0

    def cut(self, limit: int) -> int:
        """How many tokens are kept of an input; 0 where a longer one is refused."""
        wanted = self.truncate_prompt_tokens
        if wanted is None or wanted == -1:
            return limit if wanted == -1 or self.truncation else 0
        if not 0 < wanted <= limit:
            raise BadField(
                "truncate_prompt_tokens",
                f"truncate_prompt_tokens is {wanted}; it must be 1 to {limit}, or -1 for {limit}",
            )
        return wanted


class EmbeddingsBody(_Body, kw_only=True):
    """`POST /v1/embeddings`."""

    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    add_special_tokens: bool = True
    normalize: bool | None = None
    use_activation: bool | None = None


class ClassifyBody(_Body, kw_only=True):
    """`POST /classify`."""

    input: Input
    add_special_tokens: bool = True
    use_activation: bool = True


class Document(msgspec.Struct):
    """A document that has more than a text."""

    text: str


class RerankBody(_Body, kw_only=True):
    """`POST /rerank`. A `top_n` of 0 is all."""

    query: str
    documents: list[str | Document]
    top_n: Annotated[int, Meta(ge=0)] = 0
    return_documents: bool = True
    use_activation: bool = True


class ScoreBody(_Body, kw_only=True):
    """`POST /score`. The two sides have one of three pairs of names."""

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    use_activation: bool = True

    def sides(self) -> tuple[list[str], list[str]]:
        """As many of one as of the other; a single first text goes with each second one."""
        pairs = {
            ("text_1", "text_2"): (self.text_1, self.text_2),
            ("queries", "documents"): (self.queries, self.documents),
            ("data_1", "data_2"): (self.data_1, self.data_2),
        }
        given = {names: pair for names, pair in pairs.items() if pair != (None, None)}
        if len(given) != 1:
            raise BadField("text_1", "give text_1 and text_2", "missing_required_parameter")
        (first, second), (one, other) = next(iter(given.items()))
        if one is None or other is None:
            missing = first if one is None else second
            raise BadField(missing, f"{missing} is required", "missing_required_parameter")
        left, right = _listed(one), _listed(other)
        if len(left) == 1:
            left = left * len(right)
        if len(left) != len(right) or not right:
            raise BadField(
                second,
                f"{first} has {len(left)} texts and {second} {len(right)}; "
                f"{first} must have one, or as many as {second}",
            )
        return left, right


class TokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /tokenize`."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


def inputs(value: Input) -> list[str] | list[list[int]]:
    """Texts, or lists of token ids. Raises BadField for an empty list, and for one of both."""
    if isinstance(value, str):
        return [value]
    if value and all(isinstance(each, str) for each in value):
        return [str(each) for each in value]
    if value and all(isinstance(each, int) for each in value):
        return [[each for each in value if isinstance(each, int)]]
    if value and all(isinstance(each, list) for each in value):
        return [each for each in value if isinstance(each, list)]
    what = "several kinds" if value else "nothing"
    raise BadField("input", f"input holds {what}; give texts, or lists of token ids")


def _listed(texts: Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
