"""One call as the tokenizer sees it: its choices, and how far the text of each has come."""

from array import array
from collections.abc import Sequence

from octavo.services.tokenizer.detokenizer import Detokenizer
from octavo.services.tokenizer.response import DONE, Finished, Response, Usage
from octavo.services.tokenizer.stop import StopScanner
from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.shared.messages import CallId, Enqueue, Generate, RequestId, pack
from octavo.shared.openai import CallRequest


class Emitted(tuple[bytes, int, bytes, int]):
    """A chunk for the gateway: its bytes, choice, packed token ids it comes from, characters sent so far."""


class Choice:
    """One completion: tokens in, text out, exactly once whatever has been sent before by another process."""

    def __init__(
        self,
        index: int,
        request: Enqueue,
        prompt_ids: list[int],
        vocabulary: Vocabulary | None,
        options: CallRequest,
    ) -> None:
        skip = True if options.skip_special_tokens is None else options.skip_special_tokens
        self.index = index
        self.request = request
        self.prompt_ids = prompt_ids
        self.output_ids = array("i")
        self.num_chars = 0
        """Of text, sent to the gateway."""
        self.text = ""
        """Of a call that does not stream: all of it."""
        self.finish_reason: str | None = None
        self.was_opened = False
        self.num_at_last_look = -1
        """Output tokens when `TokenizerCore.ask_again` last came by."""
        self._unsent_ids = array("i")
        self._skip_chars = 0
        self._detokenizer = None if vocabulary is None else Detokenizer(vocabulary, skip_special_tokens=skip)
        self._has_stops = bool(options.stops)
        self._stops = StopScanner(options.stops)

    @property
    def id(self) -> RequestId:
        return self.request.id

    def resume(self, token_ids: Sequence[int], num_chars: int) -> str:
        """Go on where another tokenizer stopped: these tokens and so much of their text are with the client.

        Returns text that these tokens give beyond that. A choice that had ended has then ended here too.
        """
        self.was_opened = True
        self._skip_chars = num_chars
        text = self.feed(token_ids, self._reason_to_end(token_ids))
        self.take_unsent_ids()
        return text

    def feed(self, token_ids: Sequence[int], finish_reason: str | None) -> str:
        """Take in new tokens; returns the text that may be shown now, and sets `finish_reason` at the end."""
        if not self._has_stops or len(token_ids) < 2:
            return self._feed(token_ids, finish_reason)
        # One by one, so that no token counts that comes after the one which completes a stop string.
        text = ""
        for place in range(len(token_ids)):
            is_last = place == len(token_ids) - 1
            text += self._feed(token_ids[place : place + 1], finish_reason if is_last else None)
            if self.finish_reason is not None:
                break
        return text

    def take_unsent_ids(self) -> "array[int]":
        """The tokens since the last chunk."""
        taken, self._unsent_ids = self._unsent_ids, array("i")
        return taken

    def _feed(self, token_ids: Sequence[int], finish_reason: str | None) -> str:
        self.output_ids.extend(token_ids)
        self._unsent_ids.extend(token_ids)
        # The token that stopped the completion is not part of its text.
        shown = token_ids[:-1] if finish_reason == "stop" else token_ids
        text, stop = self._stops.feed(self._detokenizer.feed(shown) if self._detokenizer else "")
        if stop is None and finish_reason is not None:
            rest, stop = self._stops.feed(self._detokenizer.finish() if self._detokenizer else "")
            text += rest if stop is not None else rest + self._stops.flush()
        self.finish_reason = "stop" if stop is not None else finish_reason
        skipped = min(self._skip_chars, len(text))
        self._skip_chars -= skipped
        self.num_chars += len(text)
        return text[skipped:]

    def _reason_to_end(self, token_ids: Sequence[int]) -> str | None:
        """Why these tokens are a whole completion, if they are one; stop strings apart."""
        params = self.request.params
        if token_ids and token_ids[-1] in params.stop_token_ids:
            return "stop"
        return "length" if len(token_ids) >= params.max_tokens else None


class Call:
    """All choices of one HTTP request, and the bytes that answer it."""

    def __init__(self, message: Generate, options: CallRequest, gateway: int, choices: list[Choice]) -> None:
        self.id: CallId = message.id
        self.attempt = message.attempt
        self.gateway = gateway
        self.choices = choices
        self._options = options
        self._shows_ids = bool(options.return_token_ids)
        self._streams = bool(options.stream)
        kind, prefix = ("chat", "chatcmpl-") if message.endpoint == "chat" else ("completion", "cmpl-")
        self._response = Response(kind, prefix + message.id.hex(), message.created_s, message.model)  # type: ignore[arg-type]  # one of two literals

    @property
    def is_finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self.choices)

    def show(self, choice: Choice, text: str) -> Emitted | None:
        """The chunk for new tokens of a choice, if it streams; the last one ends the call.

        There is one for tokens without text, too: of a character's first bytes, or of what may become a stop string.
        """
        if not self._streams:
            choice.text += text
            return Emitted((self._body(), choice.index, b"", choice.num_chars)) if self.is_finished else None
        ids, chunk = choice.take_unsent_ids(), b""
        if not (ids or text) and choice.finish_reason is None:
            return None
        if not choice.was_opened:
            choice.was_opened = True
            chunk = self._response.first_chunk(choice.index, choice.prompt_ids if self._shows_ids else None)
        shown_ids = ids.tolist() if self._shows_ids else None
        chunk += self._response.chunk(choice.index, text, choice.finish_reason, shown_ids)
        if self.is_finished:
            options = self._options.stream_options
            if options is not None and options.include_usage:
                chunk += self._response.usage_chunk(self._usage())
            chunk += DONE
        return Emitted((chunk, choice.index, pack(ids), choice.num_chars))

    def _body(self) -> bytes:
        finished = [
            Finished(
                choice.index,
                choice.text,
                choice.finish_reason or "",
                choice.output_ids.tolist() if self._shows_ids else None,
            )
            for choice in self.choices
        ]
        return self._response.body(finished, self._usage(), [choice.prompt_ids for choice in self.choices])

    def _usage(self) -> Usage:
        """Prompts are counted once, however many choices share them."""
        copies = self._options.n or 1
        prompt = sum(len(choice.prompt_ids) for choice in self.choices[::copies])
        completion = sum(len(choice.output_ids) for choice in self.choices)
        return Usage(prompt, completion, prompt + completion)
