"""How completions are sampled, in vLLM's words, and the fields of a request's body that say so."""

from typing import Any

import msgspec

UNBOUNDED = 2**24  # the most that the API takes for max_tokens; the server cuts it to the room that there is


class StructuredOutputsParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the text must conform to; one of these."""

    json: str | dict[str, Any] | None = None
    """A JSON schema."""
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    """In EBNF."""
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Names, meanings and defaults are vLLM's; the server checks the bounds."""

    n: int = 1
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1: all tokens."""
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    """None: until the context is full."""
    min_tokens: int = 0
    logprobs: int | None = None
    """So many of the likeliest tokens at each position, and the one that was taken."""
    prompt_logprobs: int | None = None
    detokenize: bool = True
    """False: completions have no text."""
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    truncate_prompt_tokens: int | None = None
    structured_outputs: StructuredOutputsParams | dict[str, Any] | None = None


# A server takes a model's own defaults for these where a request is silent.
_ALWAYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def body_fields(params: SamplingParams | None, is_chat: bool) -> dict[str, Any]:
    """The fields of a request's body; what is at its default is left out, but for what models have defaults of.

    Args:
        params: None for the model's own defaults, and 16 tokens.
        is_chat: for chat completions, which name logprobs in another way.
    """
    fields: dict[str, Any] = {"max_tokens": SamplingParams().max_tokens, "return_token_ids": True}
    if params is None:
        return fields
    fields |= msgspec.to_builtins(params, str_keys=True)
    fields |= {name: getattr(params, name) for name in _ALWAYS}
    fields.pop("detokenize", None)
    if params.max_tokens is None:
        # Chats go on to the end by themselves; completions would end after 16 tokens.
        fields["max_tokens"] = None if is_chat else UNBOUNDED
    if params.logprobs is not None:
        fields["return_tokens_as_token_ids"] = True
        if is_chat:
            fields |= {"logprobs": True, "top_logprobs": params.logprobs}
    return fields
