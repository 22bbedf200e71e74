"""Answers of /v1/messages: a message of blocks, or events that tell how it comes about."""

from collections.abc import Mapping
from hashlib import blake2b

import msgspec

from octavo.services.tokenizer.answers.common import Delta, Finished, Opening, Usage, encode
from octavo.services.tokenizer.parsing.events import Content, Event, Reasoning, ToolArguments, ToolBegin

PING = b'event: ping\ndata: {"type":"ping"}\n\n'

Block = dict[str, object]

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


class MessagesAnswer:
    """See `common.Answer`. There is one choice."""

    num_events = 0

    def __init__(self, call: bytes, model: str) -> None:
        self._call, self._model = call, model
        self._num_closed = 0  # blocks
        self._open_type: str | None = None
        self._stop: dict[str, object] = {}

    def open(self, index: int, opening: Opening) -> bytes:
        message = self._message([], {"stop_reason": None, "stop_sequence": None}, len(opening.prompt_ids), 0)
        return _event("message_start", {"message": message}) + PING

    def chunk(self, delta: Delta) -> bytes:
        if delta.finish_reason is not None:
            self._stop = _stop(delta.finish_reason, delta.stop_reason)
        events: list[Event] = [Content(delta.text)] if delta.events is None else list(delta.events)
        return b"".join(self._tell(event) for event in events)

    def end(self, usage: Usage) -> bytes:
        empty = self._begin(_text("")) if self._open_type is None and self._num_closed == 0 else b""
        counts = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
        last = _event("message_delta", {"delta": self._stop, "usage": counts})
        return empty + self._close() + last + _event("message_stop", {})

    def body(self, choices: list[Finished], usage: Usage) -> bytes:
        [choice] = choices
        blocks = [_thinking(choice.reasoning, self._sign(0))] if choice.reasoning else []
        if choice.text or not (choice.reasoning or choice.tools):
            blocks.append(_text(choice.text))
        for tool in choice.tools:
            blocks.append(_tool_use(self._tool_id(len(blocks)), tool.name, _arguments(tool.arguments)))
        stop = _stop(choice.finish_reason, choice.stop_reason)
        return encode(self._message(blocks, stop, usage.prompt_tokens, usage.completion_tokens))

    def _tell(self, event: Event) -> bytes:
        if isinstance(event, ToolBegin):
            closing = self._close()
            return closing + self._begin(_tool_use(self._tool_id(self._num_closed), event.name, {}))
        if not event.text:
            return b""
        if isinstance(event, ToolArguments):
            return self._delta({"type": "input_json_delta", "partial_json": event.text})
        if isinstance(event, Reasoning):
            begun = self._within("thinking", _thinking("", ""))
            return begun + self._delta({"type": "thinking_delta", "thinking": event.text})
        return self._within("text", _text("")) + self._delta({"type": "text_delta", "text": event.text})

    def _within(self, type: str, block: Block) -> bytes:
        """What is needed so that a block of this type is open."""
        return b"" if self._open_type == type else self._close() + self._begin(block)

    def _begin(self, block: Block) -> bytes:
        self._open_type = str(block["type"])
        return _event("content_block_start", {"index": self._num_closed, "content_block": block})

    def _close(self) -> bytes:
        if self._open_type is None:
            return b""
        signature = b""
        if self._open_type == "thinking":
            signature = self._delta({"type": "signature_delta", "signature": self._sign(self._num_closed)})
        self._open_type = None
        self._num_closed += 1
        return signature + _event("content_block_stop", {"index": self._num_closed - 1})

    def _delta(self, delta: Block) -> bytes:
        return _event("content_block_delta", {"index": self._num_closed, "delta": delta})

    def _message(self, blocks: list[Block], stop: Block, num_prompt: int, num_output: int) -> Block:
        return {
            "id": f"msg_{self._call.hex()}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": blocks,
            **stop,
            "usage": {"input_tokens": num_prompt, "output_tokens": num_output},
        }

    def _tool_id(self, place: int) -> str:
        return f"toolu_{self._digest(place)}"

    def _sign(self, place: int) -> str:
        """Clients send thinking back only if it is signed; nothing is checked by it."""
        return self._digest(place)

    def _digest(self, place: int) -> str:
        return blake2b(place.to_bytes(4, "little"), key=self._call, digest_size=16).hexdigest()


def _event(type: str, fields: Mapping[str, object]) -> bytes:
    return b"event: " + type.encode() + b"\ndata: " + encode({"type": type, **fields}) + b"\n\n"


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _thinking(text: str, signature: str) -> Block:
    return {"type": "thinking", "thinking": text, "signature": signature}


def _tool_use(id: str, name: str, input: Mapping[str, object]) -> Block:
    return {"type": "tool_use", "id": id, "name": name, "input": input}


def _arguments(text: str) -> dict[str, object]:
    """Empty where the completion has ended within them: its stop reason tells that."""
    try:
        return msgspec.json.decode(text.encode(errors="surrogatepass"), type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        return {}


def _stop(reason: str, what: int | str | None) -> dict[str, object]:
    if reason == "stop" and isinstance(what, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": what}
    return {"stop_reason": _STOP_REASONS.get(reason, "end_turn"), "stop_sequence": None}
