"""Answers of /v1/responses: a response object, or events that tell how it comes about.

A stream tells logprobs with its pieces of text only: of pieces that another process has sent they are not known here.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from octavo.services.tokenizer.answers.common import Delta, Finished, Opening, Usage, encode
from octavo.services.tokenizer.answers.output_items import Logprobs, OutputItems, make_items
from octavo.services.tokenizer.logprobs import Spelling, TokenLogprobs
from octavo.shared.responses import ResponsesRequest
from octavo.shared.responses_answers import OutputDetails, OutputItem, Response, ResponseUsage, begin_response


class ResponsesAnswer:
    """See `common.Answer`. There is one choice."""

    def __init__(self, call: bytes, created_s: int, model: str, request: ResponsesRequest, spelling: Spelling) -> None:
        self._call, self._spelling = call, spelling
        self._response = begin_response(call, request, created_s, model, "in_progress")
        self._items = OutputItems(call)
        self._is_complete = True

    @property
    def num_events(self) -> int:
        return self._items.num_events

    @num_events.setter
    def num_events(self, number: int) -> None:
        self._items.num_events = number

    def open(self, index: int, opening: Opening) -> bytes:
        fields = {"response": self._response}
        return self._items.event("response.created", fields) + self._items.event("response.in_progress", fields)

    def chunk(self, delta: Delta) -> bytes:
        if delta.finish_reason is not None:
            self._is_complete = delta.finish_reason != "length"
        logprobs = self._logprobs(delta.logprobs)
        if delta.events is None:
            return self._items.feed_text(delta.text, logprobs)
        return self._items.feed(delta.events, logprobs)

    def end(self, usage: Usage) -> bytes:
        chunk = self._items.end(self._status)
        response = self._whole(self._items.done, usage)
        return chunk + self._items.event(f"response.{response.status}", {"response": response})

    def body(self, choices: list[Finished], usage: Usage) -> bytes:
        [choice] = choices
        self._is_complete = choice.finish_reason != "length"
        logprobs = self._logprobs(choice.logprobs)
        items = make_items(self._call, choice.reasoning, choice.text, choice.tools, logprobs, self._status)
        return encode(self._whole(items, usage))

    @property
    def _status(self) -> Literal["completed", "incomplete"]:
        return "completed" if self._is_complete else "incomplete"

    def _logprobs(self, tokens: Sequence[TokenLogprobs] | None) -> Logprobs:
        return self._spelling.entries(tokens) if tokens else []

    def _whole(self, items: list[OutputItem], usage: Usage) -> Response:
        reasoning = (usage.completion_tokens_details or {}).get("reasoning_tokens", 0)
        told = ResponseUsage(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputDetails(reasoning),
            total_tokens=usage.total_tokens,
        )
        return msgspec.structs.replace(
            self._response,
            status=self._status,
            incomplete_details=None if self._is_complete else {"reason": "max_output_tokens"},
            output=items,
            usage=told,
        )
