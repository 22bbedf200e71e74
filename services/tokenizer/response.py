"""Bodies and stream chunks of the OpenAI API, as finished bytes."""

from typing import Literal

import msgspec

_encode = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Finished(msgspec.Struct, frozen=True):
    """One whole completion of a call that does not stream."""

    index: int
    text: str
    finish_reason: str
    token_ids: list[int] | None = None


class Response:
    """What all bodies of one call have in common."""

    def __init__(self, kind: Literal["chat", "completion"], id: str, created_s: int, model: str) -> None:
        self._is_chat = kind == "chat"
        self._head = {"id": id, "object": "", "created": created_s, "model": model}
        self._object = "chat.completion" if self._is_chat else "text_completion"
        self._chunk_object = "chat.completion.chunk" if self._is_chat else "text_completion"
        head = _encode({**self._head, "object": self._chunk_object})
        self._chunk_head = b"data: " + head[:-1] + b',"choices":[{"index":'

    def first_chunk(self, index: int, prompt_ids: list[int] | None) -> bytes:
        """Opens a choice: in a chat it says who speaks. May be empty."""
        extra = b"" if prompt_ids is None else b',"prompt_token_ids":' + _encode(prompt_ids)
        if self._is_chat:
            return self._chunk(index, b'"delta":{"role":"assistant","content":""}', extra)
        return self._chunk(index, b'"text":""', extra) if extra else b""

    def chunk(self, index: int, text: str, finish_reason: str | None, token_ids: list[int] | None) -> bytes:
        """A piece of text, or the end of a choice, or both at once."""
        extra = b"" if token_ids is None else b',"token_ids":' + _encode(token_ids)
        if not self._is_chat:
            return self._chunk(index, b'"text":' + _encode(text), extra, finish_reason)
        delta = b'"delta":{"content":' + _encode(text) + b"}" if text else b'"delta":{}'
        return self._chunk(index, delta, extra, finish_reason)

    def usage_chunk(self, usage: Usage) -> bytes:
        body = {**self._head, "object": self._chunk_object, "choices": [], "usage": usage}
        return b"data: " + _encode(body) + b"\n\n"

    def body(self, choices: list[Finished], usage: Usage, prompt_ids: list[list[int]] | None) -> bytes:
        """The whole answer of a call that does not stream. prompt_ids: of each choice, if asked for."""
        body = {**self._head, "object": self._object, "usage": usage}
        body["choices"] = [
            self._choice(each, None if prompt_ids is None else prompt_ids[each.index]) for each in choices
        ]
        return _encode(body)

    def _choice(self, each: Finished, prompt_ids: list[int] | None) -> dict[str, object]:
        content = {"message": {"role": "assistant", "content": each.text}} if self._is_chat else {"text": each.text}
        end = {"logprobs": None, "finish_reason": each.finish_reason}
        choice: dict[str, object] = {"index": each.index, **content, **end}
        if each.token_ids is not None:
            choice |= {"token_ids": each.token_ids, "prompt_token_ids": prompt_ids}
        return choice

    def _chunk(self, index: int, content: bytes, extra: bytes, finish_reason: str | None = None) -> bytes:
        reason = b"null" if finish_reason is None else _encode(finish_reason)
        tail = b',"logprobs":null,"finish_reason":' + reason + extra + b"}]}\n\n"
        return self._chunk_head + str(index).encode() + b"," + content + tail
