"""The stop strings of one request, looked for in its text as it arrives."""

from collections import deque
from collections.abc import Sequence

from octavo.shared.errors import InvalidRequest


class StopScanner:
    """Finds the stop string that is completed first, and never shows a part of one.

    Of several that are completed by the same character the longest counts, which begins first. So the
    result depends on the text alone and not on how it was split, and no text is waited for once a stop
    string is complete. Aho and Corasick (CACM 18, 1975): linear in the text and in the stop strings.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        """include_stop: end the text with the stop string instead of before it."""
        self._stops = list(stops)
        self._include_stop = include_stop
        self._held = ""  # may be the beginning of a stop string; as long as the state is deep
        self._state = 0
        self._found: str | None = None
        self._build()

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that can be shown now, and the stop string if it is complete.

        Nothing is shown after a stop string.
        """
        if self._found is not None:
            return "", self._found
        if not self._stops:
            return text, None
        children, fallbacks, ends = self._children, self._fallbacks, self._ends
        state = self._state
        for index, character in enumerate(text):
            while state and character not in children[state]:
                state = fallbacks[state]
            state = children[state].get(character, 0)
            if (stop := ends[state]) is not None:
                return self._finish(text[: index + 1], stop)
        self._state = state
        if self._include_stop:
            return text, None
        text = self._held + text
        shown = len(text) - self._depths[state]
        self._held = text[shown:]
        return text[:shown], None

    def flush(self) -> str:
        """The text held back, at the end of a stream: it has become no stop string."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _finish(self, text: str, stop: str) -> tuple[str, str]:
        """The result for `text`, which ends with `stop`."""
        text, self._held, self._found = self._held + text, "", stop
        return (text if self._include_stop else text[: len(text) - len(stop)]), stop

    def _build(self) -> None:
        """Make the automaton. A state is a beginning of a stop string, 0 the empty one.

        _children[state]: the next state by character.
        _fallbacks[state]: the longest other state that `state` ends with.
        _depths[state]: its length.
        _ends[state]: the longest stop string that it ends with.
        """
        self._children: list[dict[str, int]] = [{}]
        self._fallbacks = [0]
        self._depths = [0]
        self._ends: list[str | None] = [None]
        for stop in self._stops:
            if not stop:
                raise InvalidRequest("a stop string is empty; it needs at least 1 character", param="stop")
            self._ends[self._add(stop)] = stop
        waiting = deque(self._children[0].values())
        while waiting:  # shortest first: a fallback is always shorter than its state
            state = waiting.popleft()
            if self._ends[state] is None:
                self._ends[state] = self._ends[self._fallbacks[state]]
            for character, child in self._children[state].items():
                self._fallbacks[child] = self._longest_ending(self._fallbacks[state], character)
                waiting.append(child)

    def _add(self, stop: str) -> int:
        """Add the states of a stop string; its own is returned."""
        state = 0
        for character in stop:
            if character not in self._children[state]:
                self._children[state][character] = len(self._children)
                self._children.append({})
                self._fallbacks.append(0)
                self._depths.append(self._depths[state] + 1)
                self._ends.append(None)
            state = self._children[state][character]
        return state

    def _longest_ending(self, state: int, character: str) -> int:
        while state and character not in self._children[state]:
            state = self._fallbacks[state]
        return self._children[state].get(character, 0)
