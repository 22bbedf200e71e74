"""Answers of /v1/chat/completions: OpenAI's fields with vLLM's additions."""

from collections.abc import Sequence
from hashlib import blake2b

from octavo.services.tokenizer.answers.common import DONE, Delta, Finished, Opening, Usage, encode
from octavo.services.tokenizer.logprobs import Spelling
from octavo.services.tokenizer.parsing.events import Content, Event, Reasoning, ToolBegin
from octavo.shared.openai import ChatRequest

_PLAIN_TAIL = b',"logprobs":null,"finish_reason":null}]}\n\n'


class ChatAnswer:
    """See `common.Answer`."""

    num_events = 0

    def __init__(self, id: str, created_s: int, model: str, options: ChatRequest, spelling: Spelling) -> None:
        self._id = id
        self._head = {"id": id, "object": "chat.completion", "created": created_s, "model": model}
        self._chunk_head = b"data: " + encode(self._head | {"object": "chat.completion.chunk"})[:-1]
        self._choice_head = self._chunk_head + b',"choices":[{"index":'
        self._options, self._spelling = options, spelling
        self._shows_ids = bool(options.return_token_ids)

    def open(self, index: int, opening: Opening) -> bytes:
        extra = b',"prompt_token_ids":' + encode(list(opening.prompt_ids)) if self._shows_ids else b""
        first = self._event(index, b'{"role":"assistant","content":""}', Delta(index, ""), extra)
        if not opening.echo:
            return first
        return first + self._event(index, _content(opening.echo), Delta(index, ""))

    def chunk(self, delta: Delta) -> bytes:
        if delta.is_plain and not self._shows_ids:  # most of all
            content = _content(delta.text) if delta.text else b"{}"
            return self._choice_head + b"%d" % delta.index + b',"delta":' + content + _PLAIN_TAIL
        ids = b',"token_ids":' + encode(list(delta.token_ids)) if self._shows_ids else b""
        if delta.events is None:
            return self._event(delta.index, _content(delta.text) if delta.text else b"{}", delta, ids)
        deltas = _deltas(self._id, delta.index, delta.events) or [{}]
        quiet = Delta(delta.index, "")
        before = [self._event(delta.index, encode(each), quiet) for each in deltas[:-1]]
        return b"".join(before) + self._event(delta.index, encode(deltas[-1]), delta, ids)

    def end(self, usage: Usage) -> bytes:
        if not self._options.includes_usage:
            return DONE
        return self._chunk_head + b',"choices":[],"usage":' + encode(usage) + b"}\n\n" + DONE

    def body(self, choices: list[Finished], usage: Usage) -> bytes:
        body: dict[str, object] = {**self._head, "choices": [self._choice(each) for each in choices], "usage": usage}
        if self._options.prompt_logprobs is not None:
            body["prompt_logprobs"] = self._spelling.prompt(choices[0].opening.prompt_logprobs or ())
        if self._shows_ids:
            body["prompt_token_ids"] = list(choices[0].opening.prompt_ids)
        return encode(body)

    def _choice(self, each: Finished) -> dict[str, object]:
        text = each.opening.echo + each.text
        message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
        if each.reasoning:
            message |= {"reasoning": each.reasoning, "reasoning_content": each.reasoning}
        if each.tools:
            message["content"] = text or None
            message["tool_calls"] = [
                {
                    "id": tool_id(self._id, each.index, place),
                    "type": "function",
                    "function": {"name": tool.name, "arguments": tool.arguments},
                }
                for place, tool in enumerate(each.tools)
            ]
        choice: dict[str, object] = {
            "index": each.index,
            "message": message,
            "logprobs": None if each.logprobs is None else self._spelling.chat(each.logprobs),
            "finish_reason": each.finish_reason,
            "stop_reason": each.stop_reason,
        }
        return choice | {"token_ids": list(each.token_ids)} if self._shows_ids else choice

    def _event(self, index: int, content: bytes, delta: Delta, extra: bytes = b"") -> bytes:
        reason = b"null" if delta.finish_reason is None else encode(delta.finish_reason)
        logprobs = b"null" if delta.logprobs is None else encode(self._spelling.chat(delta.logprobs))
        tail = b',"logprobs":' + logprobs + b',"finish_reason":' + reason + extra
        if delta.stop_reason is not None:
            tail += b',"stop_reason":' + encode(delta.stop_reason)
        tail += b"}]" if delta.usage is None else b'}],"usage":' + encode(delta.usage)
        return self._choice_head + str(index).encode() + b',"delta":' + content + tail + b"}\n\n"


def tool_id(call: str, index: int, place: int) -> str:
    """Of a choice's call of a tool: the same one whichever process says it."""
    return "call_" + blake2b(f"{call} {index} {place}".encode(), digest_size=12).hexdigest()


def _content(text: str) -> bytes:
    return b'{"content":' + encode(text) + b"}"


def _deltas(call: str, index: int, events: Sequence[Event]) -> list[dict[str, object]]:
    """One delta an event."""
    return [_delta(call, index, event) for event in events]


def _delta(call: str, index: int, event: Event) -> dict[str, object]:
    if isinstance(event, Content):
        return {"content": event.text}
    if isinstance(event, Reasoning):
        return {"reasoning": event.text, "reasoning_content": event.text}
    if isinstance(event, ToolBegin):
        function = {"name": event.name, "arguments": ""}
        id = tool_id(call, index, event.index)
        return {"tool_calls": [{"index": event.index, "id": id, "type": "function", "function": function}]}
    return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}
