"""The output of a response, item by item, and the numbered events that tell of it.

Every id follows from the call's, so another process that goes on with the stream calls things by the same names.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from octavo.services.tokenizer.answers.common import ToolCall, encode
from octavo.services.tokenizer.parsing.events import Content, Event, Reasoning, ToolArguments, ToolBegin
from octavo.shared.responses_answers import (
    CallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
)

Logprobs = list[dict[str, Any]]

_PREFIXES = {MessageItem: "msg", ReasoningItem: "rs", CallItem: "fc"}
_KIND_OF_TEXT: Mapping[type[Event], type[OutputItem]] = {Content: MessageItem, Reasoning: ReasoningItem}
_WORDS = {  # of events: what they begin with, and what the whole text is called
    MessageItem: ("response.output_text", "text"),
    ReasoningItem: ("response.reasoning_text", "text"),
    CallItem: ("response.function_call_arguments", "arguments"),
}


class OutputItems:
    """Pieces of text go in, events come out; at most one item is open at a time."""

    def __init__(self, call: bytes) -> None:
        self.num_events = 0
        self.done: list[OutputItem] = []
        self._call = call
        self._kind: type[OutputItem] | None = None  # of the open item
        self._name = ""  # of the tool that the open item calls
        self._texts: list[str] = []  # of the open item
        self._delta_head = b""

    def event(self, type: str, fields: Mapping[str, object]) -> bytes:
        """The next one in the order."""
        data = encode({"type": type, "sequence_number": self.num_events, **fields})
        self.num_events += 1
        return b"event: " + type.encode() + b"\ndata: " + data + b"\n\n"

    def feed(self, events: Sequence[Event], logprobs: Logprobs) -> bytes:
        """What the model has said. logprobs: of all its tokens; they are told with the last piece of content."""
        last = max((place for place, event in enumerate(events) if isinstance(event, Content)), default=-1)
        chunk = b""
        for place, event in enumerate(events):
            if isinstance(event, ToolBegin):
                chunk += self.close() + self._open(CallItem, event.name)
            elif isinstance(event, ToolArguments):
                chunk += self._delta(event.text, [])
            elif event.text:
                kind = _KIND_OF_TEXT[type(event)]
                if self._kind is not kind:
                    chunk += self.close() + self._open(kind)
                chunk += self._delta(event.text, logprobs if place == last else [])
        if last < 0 and logprobs and self._kind is MessageItem:
            chunk += self._delta("", logprobs)
        return chunk

    def feed_text(self, text: str, logprobs: Logprobs) -> bytes:
        """Text of a model all of whose text is content."""
        if not (text or logprobs):
            return b""
        opening = b"" if self._kind is MessageItem else self._open(MessageItem)
        return opening + self._delta(text, logprobs)

    def end(self, status: ItemStatus) -> bytes:
        """Nothing follows. There is at least one item then."""
        opening = self._open(MessageItem) if self._kind is None and not self.done else b""
        return opening + self.close(status)

    def close(self, status: ItemStatus = "completed") -> bytes:
        """The open item has ended, if there is one."""
        kind = self._kind
        if kind is None:
            return b""
        place = self._place
        text = "".join(self._texts)
        item = make_item(self._call, len(self.done), kind, text, status, self._name)
        begins, whole = _WORDS[kind]
        fields: dict[str, object] = {**place, whole: text}
        if kind is MessageItem:
            fields["logprobs"] = []
        elif kind is CallItem:
            fields["name"] = self._name
        chunk = self.event(f"{begins}.done", fields)
        if not isinstance(item, CallItem):
            chunk += self.event("response.content_part.done", {**place, "part": item.content[0]})
        chunk += self.event("response.output_item.done", {"output_index": len(self.done), "item": item})
        self.done.append(item)
        self._kind, self._name, self._texts = None, "", []
        return chunk

    @property
    def _place(self) -> dict[str, object]:
        """Of the open item, as events have it."""
        assert self._kind is not None, "an item is open"
        index = len(self.done)
        place: dict[str, object] = {"item_id": item_id(self._call, index, self._kind), "output_index": index}
        return place if self._kind is CallItem else place | {"content_index": 0}

    def _open(self, kind: type[OutputItem], name: str = "") -> bytes:
        self._kind, self._name = kind, name
        type = f"{_WORDS[kind][0]}.delta"
        fields: dict[str, object] = {"type": type, **self._place}
        self._delta_head = b"event: " + type.encode() + b"\ndata: " + encode(fields)[:-1] + b',"sequence_number":'
        item = make_item(self._call, len(self.done), kind, "", "in_progress", name)
        if isinstance(item, CallItem):
            return self.event("response.output_item.added", {"output_index": len(self.done), "item": item})
        begun = _without_content(item)
        chunk = self.event("response.output_item.added", {"output_index": len(self.done), "item": begun})
        return chunk + self.event("response.content_part.added", {**self._place, "part": item.content[0]})

    def _delta(self, text: str, logprobs: Logprobs) -> bytes:
        self._texts.append(text)
        if not (text or logprobs):
            return b""
        chunk = self._delta_head + str(self.num_events).encode() + b',"delta":' + encode(text)
        self.num_events += 1
        return chunk + (b',"logprobs":' + encode(logprobs) if self._kind is MessageItem else b"") + b"}\n\n"


def make_items(
    call: bytes, reasoning: str, text: str, tools: Sequence[ToolCall], logprobs: Logprobs, status: ItemStatus
) -> list[OutputItem]:
    """The output of a response that does not stream. status: of its last item."""
    wanted: list[tuple[type[OutputItem], str, str]] = [(ReasoningItem, reasoning, "")] if reasoning else []
    if text or not (reasoning or tools):
        wanted.append((MessageItem, text, ""))
    wanted += [(CallItem, tool.arguments, tool.name) for tool in tools]
    last = len(wanted) - 1
    return [
        make_item(call, place, kind, said, status if place == last else "completed", name, logprobs)
        for place, (kind, said, name) in enumerate(wanted)
    ]


def make_item(
    call: bytes,
    place: int,
    kind: type[OutputItem],
    text: str,
    status: ItemStatus,
    name: str = "",
    logprobs: Logprobs | None = None,
) -> OutputItem:
    """The item at a place of a response's output. name: of the tool that it calls."""
    id = item_id(call, place, kind)
    if kind is CallItem:
        return CallItem(id=id, status=status, call_id=f"call_{_digest(call, place)}", name=name, arguments=text)
    if kind is ReasoningItem:
        return ReasoningItem(id=id, status=status, content=[ReasoningText(text)])
    return MessageItem(id=id, status=status, content=[OutputText(text, logprobs=logprobs or [])])


def item_id(call: bytes, place: int, kind: type[OutputItem]) -> str:
    return f"{_PREFIXES[kind]}_{_digest(call, place)}"


def _digest(call: bytes, place: int) -> str:
    return blake2b(place.to_bytes(4, "little"), key=call, digest_size=16).hexdigest()


def _without_content(item: MessageItem | ReasoningItem) -> OutputItem:
    if isinstance(item, MessageItem):
        return MessageItem(id=item.id, status=item.status, content=[])
    return ReasoningItem(id=item.id, status=item.status, content=[])
