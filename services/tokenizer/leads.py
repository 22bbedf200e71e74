"""Leads: what a completion may say before the part that a grammar is for, in the words of xgrammar's structural tags.

Markup is a token where the vocabulary has a special one for it, else text.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

Format = dict[str, Any]
Marker = str | int
"""A text, or the id of a special token."""

_ANY_TEXT: Format = {"type": "any_text"}
_NEWLINES: Format = {"type": "regex", "pattern": r"\n*"}


class ThinkLead(msgspec.Struct, frozen=True):
    """Reasoning between two tags."""

    opening: Marker
    """"" in a completion that is within its reasoning from the start."""
    closing: Marker

    @property
    def format(self) -> Format:
        """All that comes before the part which counts."""
        if isinstance(self.opening, str):  # it is a part of the thought, or stands in the prompt
            return _sequence(_tag("", self.closing), _NEWLINES)
        return _optional(_sequence(_tag(self.opening, self.closing), _NEWLINES))


class HarmonyLead(msgspec.Struct, frozen=True):
    """The messages of gpt-oss behind "<|start|>assistant": one of analysis, or none, and the one that counts."""

    start: Marker
    channel: Marker
    constrain: Marker
    message: Marker
    end: Marker

    @property
    def format(self) -> Format:
        """All that comes before the text of the final message."""
        return _sequence(self._analysis, self.channel, "final", self.message)

    def calling(self, parameters: Mapping[str, Any]) -> Format:
        """A whole completion: one call of one of these functions. parameters: by name, the schema of each."""
        calls = [
            _sequence(
                self.channel, f"commentary to=functions.{name} ", self.constrain, "json", self.message,
                {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1},
            )
            for name, schema in parameters.items()
        ]  # fmt: skip
        return _sequence(self._analysis, {"type": "or", "elements": calls})

    @property
    def _analysis(self) -> Format:
        thought = _tag("", self.end)
        return _optional(_sequence(self.channel, "analysis", self.message, thought, self.start, "assistant"))


Lead = ThinkLead | HarmonyLead


def _sequence(*elements: Marker | Format) -> Format:
    return {"type": "sequence", "elements": [each if isinstance(each, dict) else _markup(each) for each in elements]}


def _optional(content: Format) -> Format:
    return {"type": "optional", "content": content}


def _tag(begin: Marker, end: Marker) -> Format:
    """Any text between two markers."""
    begins, ends = (_markup(each) if isinstance(each, int) else each for each in (begin, end))
    return {"type": "tag", "begin": begins, "content": _ANY_TEXT, "end": ends}


def _markup(marker: Marker) -> Format:
    if isinstance(marker, int):
        return {"type": "token", "token": marker}
    return {"type": "const_string", "value": marker}
