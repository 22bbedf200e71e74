"""One call as the tokenizer sees it: its choices, and the bytes that answer it."""

import time
from collections.abc import Sequence

from octavo.services.tokenizer.answers.common import Answer, Delta, Usage
from octavo.services.tokenizer.choice import Choice
from octavo.shared.messages import Begin, CallId, Generate, Spent, pack
from octavo.shared.openai import Options


class Emitted(tuple[bytes, int, bytes, int, int]):
    """A chunk for the gateway: its bytes, choice, packed token ids it comes from, characters and events sent so far."""


class Call:
    """All choices of one HTTP request, and the bytes that answer it."""

    def __init__(
        self, message: Generate, options: Options, gateway: int, choices: list[Choice], answer: Answer
    ) -> None:
        self.id: CallId = message.id
        self.attempt = message.attempt
        self.gateway = gateway
        self.choices = choices
        self._options = options
        self._streams = bool(options.stream)
        self._answer = answer
        stream_options = options.stream_options
        self._tells_usage = stream_options is not None and stream_options.continuous_usage_stats
        self._begin: Begin | None = None
        self._began_s = 0.0

    @property
    def is_finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self.choices)

    def note_begin(self, begin: Begin) -> None:
        """A choice has its first token."""
        if self._begin is None:
            self._begin, self._began_s = begin, time.monotonic()

    def spent(self) -> Spent:
        """What it has come to. To be asked when it has just finished."""
        usage = self._usage()
        decode_s = 0.0 if self._begin is None else time.monotonic() - self._began_s
        return Spent(usage.prompt_tokens, usage.completion_tokens, self._begin, decode_s)

    def show(self, choice: Choice, text: str) -> Emitted | None:
        """The chunk for new tokens of a choice, if it streams; the last one ends the call.

        There is one for tokens without text, too: of a character's first bytes, or of what may become a stop string.
        """
        events = choice.parse(text, choice.finish_reason is not None)
        if not self._streams:
            return Emitted((self._body(), choice.index, b"", choice.num_chars, 0)) if self.is_finished else None
        ids, logprobs = choice.take_news()
        if not (ids or text) and choice.finish_reason is None:
            return None
        chunk = b""
        if not choice.was_opened:
            choice.was_opened = True
            chunk = self._answer.open(choice.index, choice.opening)
        reason = usage = stop_reason = None
        if choice.finish_reason is not None:
            reason, stop_reason = choice.shown_reason, choice.stop_reason
        if self._tells_usage:
            usage = self._usage()
        chunk += self._answer.chunk(Delta(choice.index, text, events, reason, stop_reason, ids, logprobs, usage))
        if reason is not None and self.is_finished:
            chunk += self._answer.end(self._usage())
        return Emitted((chunk, choice.index, pack(ids), choice.num_chars, self._answer.num_events))

    def resume(self, choice: Choice, token_ids: Sequence[int], num_chars: int, num_events: int = 0) -> Emitted | None:
        """Go on where another tokenizer stopped: these tokens and so much of their text are with the client.

        Returns the chunk for what they give beyond that.
        """
        text = choice.resume(token_ids)
        sent, rest = text[:num_chars], text[num_chars:]
        reason = None if rest else choice.shown_reason
        events = choice.parse(sent, reason is not None)
        if self._streams:  # the answer must be where the client is
            ids, logprobs = choice.take_news()
            self._answer.open(choice.index, choice.opening)
            self._answer.chunk(Delta(choice.index, sent, events, reason, choice.stop_reason, ids, logprobs))
            self._answer.num_events = num_events
        return self.show(choice, rest) if rest else None

    def _body(self) -> bytes:
        copies, number = self._options.num_copies, self._options.num_choices
        shown: list[Choice] = []
        for start in range(0, len(self.choices), copies):
            of_prompt = self.choices[start : start + copies]
            if number < copies:
                of_prompt = sorted(of_prompt, key=lambda each: each.mean_logprob, reverse=True)[:number]
            shown += of_prompt
        return self._answer.body([choice.finished(index) for index, choice in enumerate(shown)], self._usage())

    def _usage(self) -> Usage:
        """Prompts are counted once, however many choices share them."""
        prompt = sum(len(choice.prompt_ids) for choice in self.choices[:: self._options.num_copies])
        completion = sum(len(choice.output_ids) for choice in self.choices)
        reasoning = sum(choice.num_reasoning_tokens for choice in self.choices)
        details = {"reasoning_tokens": reasoning} if reasoning else None
        return Usage(prompt, completion, prompt + completion, details)
