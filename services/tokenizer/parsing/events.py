"""What the text of a model turns out to be, piece by piece."""

from typing import TypeAlias

import msgspec


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """A piece of what the model says to itself."""

    text: str


class Content(msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer."""

    text: str


class ToolBegin(msgspec.Struct, frozen=True, gc=False):
    """A call of a tool begins. index: counts the calls of one text from 0."""

    index: int
    name: str


class ToolArguments(msgspec.Struct, frozen=True, gc=False):
    """A piece of a call's arguments; the pieces of a complete call are one JSON object."""

    index: int
    text: str


Event: TypeAlias = Reasoning | Content | ToolBegin | ToolArguments
