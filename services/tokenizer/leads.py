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

    def before(self, form: Format) -> Format:
        """What the whole completion must be, if the part behind reasoning must be `form`."""
        if isinstance(self.opening, str):  # it is a part of the thought, or stands in the prompt
            return _sequence(_tag("", self.closing), _NEWLINES, form)
        thoughtful = _sequence(_tag(self.opening, self.closing), _NEWLINES, form)
        return {"type": "or", "elements": [thoughtful, form]}


class HarmonyLead(msgspec.Struct, frozen=True):
    """The messages of gpt-oss behind "<|start|>assistant": one of analysis, or none, and the one that counts."""

    start: Marker
    channel: Marker
    constrain: Marker
    message: Marker
    end: Marker

    def before(self, form: Format) -> Format:
        """What the whole completion must be, if the text of its final message must be `form`."""
        return self._behind_analysis(_sequence(self.channel, "final", self.message, form))

    def calling(self, parameters: Mapping[str, Any]) -> Format:
        """One call of one of these functions. parameters: by name, the schema of each."""
        calls = [
            _sequence(
                self.channel, f"commentary to=functions.{name} ", self.constrain, "json", self.message,
                {"type": "json_schema", "json_schema": schema},
            )
            for name, schema in parameters.items()
        ]  # fmt: skip
        return self._behind_analysis({"type": "or", "elements": calls})

    def _behind_analysis(self, form: Format) -> Format:
        thought = _tag("", self.end)
        analysis = _sequence(self.channel, "analysis", self.message, thought, self.start, "assistant")
        return _sequence({"type": "optional", "content": analysis}, form)


Lead = ThinkLead | HarmonyLead


def _sequence(*elements: Marker | Format) -> Format:
    return {"type": "sequence", "elements": [each if isinstance(each, dict) else _markup(each) for each in elements]}


def _tag(begin: Marker, end: Marker) -> Format:
    """Any text between two markers."""
    begins, ends = (_markup(each) if isinstance(each, int) else each for each in (begin, end))
    return {"type": "tag", "begin": begins, "content": _ANY_TEXT, "end": ends}


def _markup(marker: Marker) -> Format:
    if isinstance(marker, int):
        return {"type": "token", "token": marker}
    return {"type": "const_string", "value": marker}
