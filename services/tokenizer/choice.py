"""One completion as the tokenizer sees it: tokens in, text out, exactly once whatever another process has sent."""

import struct
from array import array
from collections.abc import Sequence

from octavo.services.tokenizer.answers.common import Finished, Opening, ToolCall
from octavo.services.tokenizer.detokenizer import Detokenizer
from octavo.services.tokenizer.logprobs import TokenLogprobs, read_logprobs, read_prompt_logprobs
from octavo.services.tokenizer.parsing.events import Content, Event, Reasoning, ToolArguments, ToolBegin
from octavo.services.tokenizer.parsing.parser import OutputParser
from octavo.services.tokenizer.stop import StopScanner
from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.shared.messages import Enqueue, RequestId, logprob_bytes
from octavo.shared.openai import ChatRequest, Options

_UNKNOWN = struct.pack("<f", float("nan"))


class Choice:
    """Tokens go in by `feed`; what the client is to see comes out as text, or as events where there is a parser."""

    def __init__(
        self,
        index: int,
        request: Enqueue,
        prompt_ids: Sequence[int],
        vocabulary: Vocabulary | None,
        options: Options,
        parser: OutputParser | None = None,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """shown: special tokens that are text to the parser."""
        skip = True if options.skip_special_tokens is None else options.skip_special_tokens
        self.index = index
        self.request = request
        self.prompt_ids = prompt_ids
        self.prompt_text = ""
        """Where the answer is to begin with it."""
        self.output_ids = array("i")
        self.num_chars = 0
        """Of text, sent to the gateway."""
        self.num_reasoning_tokens = 0
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        """The stop string, or the token that is no end-of-sequence one, at which it ended."""
        self.was_opened = False
        self.num_at_last_look = -1
        """Output tokens when `TokenizerCore.ask_again` last came by."""
        self.logprobs = bytearray()
        self.prompt_logprobs = b""
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tools: list[ToolCall] = []
        self._num_sent = self._num_parsed = 0  # tokens
        self._is_wanted = options.max_tokens != 0
        self._min_tokens = request.params.min_tokens
        self._eos_ids = frozenset() if vocabulary is None else vocabulary.eos_ids
        self._includes_stop = bool(options.include_stop_str_in_output)
        self._detokenizer = (
            None if vocabulary is None else Detokenizer(vocabulary, skip_special_tokens=skip, shown=shown)
        )
        self._stops = StopScanner(options.stops, include_stop=self._includes_stop)
        self._has_stops = bool(options.stops)
        self._parser = parser
        self._hides_reasoning = isinstance(options, ChatRequest) and options.include_reasoning is False

    @property
    def id(self) -> RequestId:
        return self.request.id

    def resume(self, token_ids: Sequence[int]) -> str:
        """Go on where another tokenizer stopped: these tokens are with the client, their logprobs too.

        Returns their text. A choice that had ended has then ended here too.
        """
        self.was_opened = True
        num_top = self.request.params.logprobs
        size = 0 if num_top is None else logprob_bytes(num_top)
        unknown = _UNKNOWN * (len(token_ids) * size // len(_UNKNOWN))
        return self.feed(token_ids, self._reason_to_end(token_ids), unknown)

    def feed(self, token_ids: Sequence[int], finish_reason: str | None, logprobs: bytes = b"") -> str:
        """Take in new tokens; returns the text that may be shown now, and sets `finish_reason` at the end.

        logprobs: of these tokens, as `Tokens` brings them.
        """
        if not self._is_wanted:  # the prompt is all
            self.finish_reason = "length"
            return ""
        self.logprobs += logprobs
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

    def parse(self, text: str, is_last: bool) -> list[Event] | None:
        """What the next text means; None where all text is content. To be called once for each."""
        if self._parser is None:
            self._text.append(text)
            return None
        events = self._parser.feed(text)
        if is_last:
            events += self._parser.finish()
        num_before, self._num_parsed = self._num_parsed, len(self.output_ids)
        reasoned = sum(len(event.text) for event in events if isinstance(event, Reasoning))
        if reasoned:  # of tokens that were fed together, as many as there is of the text
            others = sum(len(event.text) for event in events if isinstance(event, Content | ToolArguments))
            self.num_reasoning_tokens += round((self._num_parsed - num_before) * reasoned / (reasoned + others))
        if self._hides_reasoning:
            events = [event for event in events if not isinstance(event, Reasoning)]
        for event in events:
            match event:
                case Content():
                    self._text.append(event.text)
                case Reasoning():
                    self._reasoning.append(event.text)
                case ToolBegin():
                    self._tools.append(ToolCall(event.name))
                case ToolArguments():
                    self._tools[event.index].arguments += event.text
        return events

    @property
    def shown_reason(self) -> str | None:
        """Why it ended, as the client is told."""
        return "tool_calls" if self._tools and self.finish_reason == "stop" else self.finish_reason

    def take_news(self) -> tuple["array[int]", list[TokenLogprobs] | None]:
        """The tokens since the last time, and their logprobs if they are asked for."""
        start, self._num_sent = self._num_sent, len(self.output_ids)
        return self.output_ids[start:], self.logprobs_from(start)

    def logprobs_from(self, start: int) -> list[TokenLogprobs] | None:
        """Of its tokens from a place on; None if they are not asked for."""
        num_top = self.request.params.logprobs
        if num_top is None:
            return None
        size = logprob_bytes(num_top)
        return read_logprobs(bytes(self.logprobs[start * size :]), num_top, self.output_ids[start:])

    @property
    def opening(self) -> Opening:
        num_top, told = self.request.params.prompt_logprobs, None
        if num_top is not None:
            told = read_prompt_logprobs(self.prompt_logprobs, num_top, self.prompt_ids)
        return Opening(self.prompt_ids, self.prompt_text, told)

    def finished(self, index: int) -> Finished:
        """All of it. index: under which it is shown."""
        return Finished(
            index, self.opening, "".join(self._text), "".join(self._reasoning), self._tools, self.shown_reason or "",
            self.stop_reason, self.output_ids, self.logprobs_from(0),
        )  # fmt: skip

    @property
    def mean_logprob(self) -> float:
        """Of its tokens: how likely the completion is, whatever its length."""
        told = self.logprobs_from(0)
        return sum(each.logprob for each in told) / len(told) if told else 0.0

    def _feed(self, token_ids: Sequence[int], finish_reason: str | None) -> str:
        num_before = len(self.output_ids)
        self.output_ids.extend(token_ids)
        shown = token_ids
        if finish_reason == "stop":
            if token_ids[-1] not in self._eos_ids:
                self.stop_reason = token_ids[-1]
            if not self._includes_stop:
                shown = token_ids[:-1]  # the token that stopped the completion is not part of its text
        text = self._detokenizer.feed(shown) if self._detokenizer else ""
        stop: str | None = None
        if num_before >= self._min_tokens:
            text, stop = self._stops.feed(text)
        if stop is None and finish_reason is not None:
            rest, stop = self._stops.feed(self._detokenizer.finish() if self._detokenizer else "")
            text += rest if stop is not None else rest + self._stops.flush()
        if stop is not None:
            self.stop_reason = stop
        self.finish_reason = "stop" if stop is not None else finish_reason
        self.num_chars += len(text)
        return text

    def _reason_to_end(self, token_ids: Sequence[int]) -> str | None:
        """Why these tokens are a whole completion, if they are one; stop strings apart."""
        params = self.request.params
        if token_ids and token_ids[-1] in params.stop_token_ids and len(token_ids) > params.min_tokens:
            return "stop"
        return "length" if len(token_ids) >= params.max_tokens else None
