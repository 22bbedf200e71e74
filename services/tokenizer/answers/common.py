"""What the answers of all endpoints are made from: a choice's news, a whole completion, and the tokens of both."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from octavo.services.tokenizer.logprobs import TokenLogprobs
from octavo.services.tokenizer.parsing.events import Event

encode = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Counted in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: dict[str, int] | None = None


class ToolCall(msgspec.Struct):
    """A call as far as it has come."""

    name: str
    arguments: str = ""


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What a choice has to tell: new text and what it means, and its end."""

    index: int
    text: str
    events: Sequence[Event] | None = None
    """The text as reasoning, content and calls of tools; None: all of it is content."""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprobs] | None = None
    usage: Usage | None = None
    """Of the call so far, if the client wants that all along."""

    @property
    def is_plain(self) -> bool:
        """There is text, or not even that, and nothing else."""
        return self.finish_reason is None and self.logprobs is None and self.usage is None and self.events is None


class Opening(msgspec.Struct, frozen=True):
    """What precedes a choice's completion."""

    prompt_ids: Sequence[int]
    echo: str = ""
    """The prompt's text, where the answer begins with it."""
    prompt_logprobs: Sequence[TokenLogprobs] | None = None
    """Of all its tokens but the first."""


class Finished(msgspec.Struct, frozen=True):
    """One whole completion of a call that does not stream."""

    index: int
    opening: Opening
    text: str
    reasoning: str
    tools: Sequence[ToolCall]
    finish_reason: str
    stop_reason: int | str | None
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprobs] | None


class Answer(Protocol):
    """Turns what choices tell into the bytes of one endpoint. Belongs to one call.

    What it is in after `open` and chunks must follow from their events alone, put together: another process may have
    got them in other portions.
    """

    num_events: int
    """How many it has made, where they are numbered; else 0."""

    def open(self, index: int, opening: Opening) -> bytes:
        """Events that begin a choice; may be empty."""
        ...

    def chunk(self, delta: Delta) -> bytes:
        """Events for news of a choice that is open."""
        ...

    def end(self, usage: Usage) -> bytes:
        """Events behind the last choice."""
        ...

    def body(self, choices: list[Finished], usage: Usage) -> bytes:
        """The whole answer of a call that does not stream."""
        ...
