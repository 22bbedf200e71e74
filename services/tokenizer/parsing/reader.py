"""The text of one stream, read by generators that yield where they need more of it.

Purity over splits is kept here: whatever is decided or emitted follows from the text so far alone. A
reading step waits while a longer text could change what it decides, passes on at once all that no
longer text can change, and looks ahead only over a bounded number of characters, so that time is
linear however small the pieces are.
"""

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

from octavo.services.tokenizer.parsing.events import Content, Event, Reasoning, ToolArguments, ToolBegin

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]

SPACE = " \t\r\n"
MAX_NAME = 256  # characters of the name of a tool, a parameter or a JSON key; a longer one is none

_SPACES = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"""[^\s<>()\[\]{}"'`,;=|｜]*""")


class Malformed(Exception):
    """The text is not what a grammar expects. It stays at the first character that does not fit."""


class Markers:
    """Texts that are looked for together."""

    def __init__(self, texts: Sequence[str]) -> None:
        # Else what is found would depend on how much of the text is there.
        assert not any(a in b for a in texts for b in texts if a is not b), f"a marker within another: {texts}"
        self.texts = tuple(texts)
        self.firsts = "".join(sorted({text[0] for text in texts}))
        self._any = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
        self._first = re.compile(f"[{re.escape(self.firsts)}]" if texts else r"(?!)")
        self._longest = max(map(len, texts), default=1)

    def find(self, text: str, start: int) -> tuple[int, str]:
        """Where a marker begins at or after `start`, and which; or else where one may begin, and ""."""
        if found := self._any.search(text, start):
            return found.start(), found[0]
        for first in self._first.finditer(text, max(start, len(text) - self._longest + 1)):
            if self.may_begin(text[first.start() :]):
                return first.start(), ""
        return len(text), ""

    def at(self, text: str, start: int) -> str | None:
        """The marker that begins at `start`; "" if none does, None if more text must tell."""
        rest = text[start : start + self._longest]
        found = next((marker for marker in self.texts if rest.startswith(marker)), "")
        return None if not found and self.may_begin(rest) else found

    def may_begin(self, rest: str) -> bool:
        return any(marker.startswith(rest) for marker in self.texts)


class Reader:
    """Text that has not been read yet, and the events of what has been.

    What has been read belongs to one of four: text that was passed on; `_blank`, whitespace that is
    dropped if a call turns out to stand beside it; `kept`, what may still turn out to be text (empty
    inside a call); or a call that has begun, whose markup is dropped as it is read.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.kind: type[Content] | type[Reasoning] = Content  # what text is that is no call
        self.in_call = False
        self.num_tools = 0
        self.kept: list[str] = []
        self._blank: list[str] = []
        self._follows_markup = False
        self._events: list[Event] = []
        self._pieces: list[str] = []
        self._piece_kind: type[Content] | type[Reasoning] | type[ToolArguments] = Content

    def add(self, text: str) -> None:
        """More text has come."""
        self.text = self.text[self.at :] + text
        self.at = 0

    def take_events(self) -> list[Event]:
        self._close_piece()
        events, self._events = self._events, []
        return events

    def finish(self) -> None:
        """No more comes: what may still have turned out to be text is text. A call stays as it is."""
        rest = self.text[self.at :]
        self.text, self.at = "", 0
        if self.in_call:
            return
        if self.kept or rest or not self._follows_markup:
            self.kept.append(rest)
            self.give_back()

    # What becomes of the text.

    def begin_call(self, name: str) -> None:
        self.accept()
        self._close_piece()
        self._events.append(ToolBegin(self.num_tools, name))
        self.num_tools += 1
        self.in_call = True

    def arguments(self, text: str) -> None:
        self._write(ToolArguments, text)

    def end_call(self) -> None:
        self.in_call = False
        self._follows_markup = True

    def accept(self) -> None:
        """What has been kept is markup."""
        self.kept.clear()
        self._blank.clear()
        self._follows_markup = True

    def give_back(self) -> None:
        """What has been kept is text after all, as the model wrote it. A call that has begun ends here."""
        if self.in_call:
            self.end_call()
            return
        for text in (*self._blank, *self.kept):
            self._write(self.kind, text)
        self._blank.clear()
        self.kept.clear()
        self._follows_markup = False

    # Reading.

    def peek(self) -> Steps[str]:
        """The next character, left where it is."""
        while self.at >= len(self.text):
            yield
        return self.text[self.at]

    def take(self, num_characters: int) -> None:
        """Read characters that are there."""
        self._take(self.at + num_characters)

    def space(self) -> Steps[str]:
        """Skip whitespace. The character after it, left where it is."""
        while True:
            end = _SPACES.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches anything
            if end > self.at and not self.kept and not self.in_call:
                self._blank.append(self.text[self.at : end])
                self.at = end
            self._take(end)
            if end < len(self.text):
                return self.text[end]
            yield

    def ahead(self, markers: Markers) -> Steps[str]:
        """The marker that stands here, left where it is; "" if none does."""
        while (found := markers.at(self.text, self.at)) is None:
            yield
        return found

    def literal(self, markers: Markers) -> Steps[str]:
        """Read a marker that stands here; "" if none does."""
        found = yield from self.ahead(markers)
        self.take(len(found))
        return found

    def run(self, pattern: re.Pattern[str], max_characters: int) -> Steps[str]:
        """Read the characters that the pattern, a repeated class, allows."""
        while True:
            limit = self.at + max_characters
            end = pattern.match(self.text, self.at, limit).end()  # type: ignore[union-attr]  # matches anything
            if end < len(self.text) or end == limit:
                run = self.text[self.at : end]
                self._take(end)
                return run
            yield

    def name(self) -> Steps[str]:
        """Read a name. Raises Malformed where there is none."""
        name = yield from self.run(_NAME, MAX_NAME)
        if not 0 < len(name) < MAX_NAME:
            raise Malformed
        return name

    def pass_text(self, markers: Markers, *, trims: bool = True) -> Steps[str]:
        """Pass text on until a marker, which is kept.

        trims: hold back whitespace that may stand before a marker.
        """
        while True:
            end, found = markers.find(self.text, self.at)
            self._pass(end, trims)
            if found:
                self.take(len(found))
                return found
            yield

    def pass_until(self, markers: Markers, write: Callable[[str], None]) -> Steps[str]:
        """Write text until a marker, which stays where it is."""
        while True:
            end, found = markers.find(self.text, self.at)
            write(self.text[self.at : end])
            self.at = end
            if found:
                return found
            yield

    def _take(self, end: int) -> None:
        if end > self.at and not self.in_call:
            self.kept.append(self.text[self.at : end])
        self.at = end

    def _pass(self, end: int, trims: bool) -> None:
        piece = self.text[self.at : end]
        self.at = end
        body = piece.rstrip(SPACE) if trims else piece
        if body:
            self.kept.append(body)
            self.give_back()
        if len(body) < len(piece):
            self._blank.append(piece[len(body) :])

    def _write(self, kind: type[Content] | type[Reasoning] | type[ToolArguments], text: str) -> None:
        if kind is not self._piece_kind:
            self._close_piece()
            self._piece_kind = kind
        self._pieces.append(text)

    def _close_piece(self) -> None:
        text = "".join(self._pieces)
        self._pieces.clear()
        if not text:
            return
        if self._piece_kind is ToolArguments:
            self._events.append(ToolArguments(self.num_tools - 1, text))
        else:
            kind = Content if self._piece_kind is Content else Reasoning
            self._events.append(kind(text))
