"""What `LLM` takes as prompts, conversations and parameters, and the bodies of requests that they become."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec

from octavo.services.llm.outputs import Collector
from octavo.services.llm.sampling_params import SamplingParams, body_fields


class TextPrompt(TypedDict):
    prompt: str


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


Prompt = str | list[int] | TextPrompt | TokensPrompt
Message = dict[str, Any]
"""With `role`, `content` and what else the API takes."""
Params = SamplingParams | Sequence[SamplingParams] | None
"""One for all prompts, one for each, or the model's defaults and 16 tokens."""

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


@dataclass(frozen=True)
class Job:
    """One prompt or conversation to be completed."""

    index: int
    """Its place among those that were given."""
    path: str
    fields: dict[str, Any]
    """Of the body."""
    text: str | None
    params: SamplingParams | None

    def body(self, **more: object) -> bytes:
        return msgspec.json.encode(self.fields | more)

    def collector(self, request_id: str) -> Collector:
        params = self.params or SamplingParams()
        return Collector(request_id, self.text, params.n, params.logprobs or 0, params.detokenize)


def generate_jobs(prompts: Prompt | Sequence[Prompt], params: Params) -> list[Job]:
    """Raises TypeError or ValueError for what is no prompt, and for another number of parameters than of prompts."""
    is_one = isinstance(prompts, str | dict) or _is_ids(prompts)
    listed: Any = [prompts] if is_one else prompts
    return [
        Job(index, COMPLETIONS, body_fields(each, is_chat=False) | {"prompt": text if ids is None else ids}, text, each)
        for index, ((text, ids), each) in enumerate(zip(map(_read, listed), _spread(params, len(listed)), strict=True))
    ]


def chat_jobs(messages: Sequence[Message] | Sequence[Sequence[Message]], params: Params, extra: Message) -> list[Job]:
    """extra: fields of all bodies, as they are. Raises ValueError for another number of parameters than of chats."""
    is_one = bool(messages) and isinstance(messages[0], dict)
    listed: Sequence[Any] = [messages] if is_one else messages
    return [
        Job(index, CHATS, body_fields(each, is_chat=True) | extra | {"messages": chat}, None, each)
        for index, (chat, each) in enumerate(zip(listed, _spread(params, len(listed)), strict=True))
    ]


def _spread(params: Params, count: int) -> Sequence[SamplingParams | None]:
    if params is None or isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise ValueError(f"{len(params)} sampling_params for {count} prompts: give one, or one for each")
    return params


def _read(prompt: Any) -> tuple[str | None, list[int] | None]:
    """The text of a prompt, or its token ids."""
    if isinstance(prompt, str):
        return prompt, None
    if _is_ids(prompt):
        return None, list(prompt)
    if isinstance(prompt, dict) and ("prompt" in prompt or "prompt_token_ids" in prompt):
        ids = prompt.get("prompt_token_ids")
        return prompt.get("prompt"), None if ids is None else list(ids)
    raise TypeError(f"a prompt is a text, {{'prompt': text}} or {{'prompt_token_ids': ids}}, not {prompt!r:.100}")


def _is_ids(prompt: object) -> bool:
    return isinstance(prompt, list | tuple) and bool(prompt) and all(isinstance(each, int) for each in prompt)
