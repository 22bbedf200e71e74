"""What a grammar of calls is told of the format and the request that it works for."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

from octavo.services.tokenizer.parsing.reader import Markers, Reader, Steps

Schema: TypeAlias = Mapping[str, object]


class Rules(msgspec.Struct, frozen=True):
    is_certain: bool  # a marker, or the request, says that here is a call; else the text may just look like one
    ends: Markers  # stand outside of JSON strings only where a call ends, broken off or not
    schemas: Mapping[str, Schema] = {}  # of the parameters, by name of the tool


# Reads the calls that begin here. Raises Malformed at what does not belong to them.
Grammar: TypeAlias = Callable[[Reader, Rules], Steps[None]]
