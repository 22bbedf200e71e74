"""Conversation: a chat put together from the pieces in which other APIs tell it.

What an assistant thinks, says and calls in one go is one message of a chat; elsewhere these are items or blocks.
"""

from collections.abc import Sequence
from typing import Literal

from octavo.shared.openai_parts import ChatMessage, ContentPart, FunctionCall, ToolCall


class Conversation:
    """Pieces go in, in their order; messages come out."""

    def __init__(self) -> None:
        self._messages: list[ChatMessage] = []
        self._reasoning = ""
        self._content: str | None = None
        self._calls: list[ToolCall] = []
        self._tools: dict[str, str] = {}  # name of the tool, by id of its call

    @property
    def has_answer(self) -> bool:
        """The assistant's turn that is not over has text."""
        return self._content is not None

    def tell(self, role: Literal["system", "developer", "user"], texts: Sequence[str]) -> None:
        """A message of somebody else, in one or more parts."""
        self.end_turn()
        content = texts[0] if len(texts) == 1 else [ContentPart("text", text) for text in texts]
        self._messages.append(ChatMessage(role, content))

    def think(self, text: str) -> None:
        """The assistant reasons; behind an answer or a call that begins another turn."""
        if self._content is not None or self._calls:
            self.end_turn()
        self._reasoning += text

    def answer(self, text: str) -> None:
        """The assistant says this, behind what it has said in this turn."""
        self._content = (self._content or "") + text

    def call(self, id: str, name: str, arguments: str) -> None:
        """The assistant calls a tool. arguments: JSON."""
        self._tools[id] = name
        self._calls.append(ToolCall(FunctionCall(name, arguments), id))

    def result(self, id: str, text: str) -> None:
        """What the call of a tool has given."""
        self.end_turn()
        self._messages.append(ChatMessage("tool", text, self._tools.get(id), tool_call_id=id))

    def end_turn(self) -> None:
        """What follows is another message."""
        if self._reasoning or self._content is not None or self._calls:
            reasoning, calls = self._reasoning or None, self._calls or None
            message = ChatMessage("assistant", self._content, tool_calls=calls, reasoning_content=reasoning)
            self._messages.append(message)
        self._reasoning, self._content, self._calls = "", None, []

    def messages(self) -> list[ChatMessage]:
        """All of them."""
        self.end_turn()
        return self._messages
