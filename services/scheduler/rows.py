"""The rows of a step's result, sorted by the tokenizer that each goes to."""

from array import array
from collections.abc import Callable, Sequence
from operator import itemgetter, sub

import msgspec

from octavo.services.scheduler.request import Request
from octavo.shared.messages import RequestId, Tokens, pack
from octavo.shared.transport import Address


class TokenizerRows(msgspec.Struct, frozen=True):
    """The rows of one tokenizer: columns that stay the same as long as the batch does."""

    route: Address
    requests: list[Request]
    ids: list[RequestId]
    arrays: "list[array[int]]"
    num_prompts: list[int]
    pick: Callable[[Sequence[int]], Sequence[int]] | None
    """Chooses these rows' tokens from those of all rows; None when these are all."""

    def starts(self) -> bytes:
        """The places in their completions of the tokens to come, packed."""
        return pack(list(map(sub, map(len, self.arrays), self.num_prompts)))

    def choose(self, tokens: Sequence[int]) -> Sequence[int]:
        """Of the tokens of all rows, these rows' own."""
        return tokens if self.pick is None else self.pick(tokens)

    def message(self, starts: bytes, tokens: Sequence[int], reasons: dict[RequestId, str]) -> Tokens:
        """What the tokenizer is told; `reasons` are of all requests that end with this step."""
        finished = {row: reasons[id] for row, id in enumerate(self.ids) if id in reasons} if reasons else {}
        return Tokens(self.ids, starts, b"", pack(self.choose(tokens)), finished)


def group_rows(owners: Sequence[Request | None]) -> list[TokenizerRows]:
    """Rows by tokenizer; those without an owner go nowhere."""
    by_route: dict[Address, list[int]] = {}
    for row, request in enumerate(owners):
        if request is not None:
            by_route.setdefault(request.route, []).append(row)
    return [_rows_of(route, rows, owners) for route, rows in by_route.items()]


def _rows_of(route: Address, rows: list[int], owners: Sequence[Request | None]) -> TokenizerRows:
    pick: Callable[[Sequence[int]], Sequence[int]] | None = None
    if len(rows) == 1 < len(owners):
        pick = itemgetter(slice(rows[0], rows[0] + 1))  # itemgetter of one index would give no sequence
    elif len(rows) < len(owners):
        pick = itemgetter(*rows)
    requests = [request for row in rows if (request := owners[row]) is not None]
    return TokenizerRows(
        route, requests, [request.id for request in requests], [request.token_ids for request in requests],
        [request.num_prompt for request in requests], pick,
    )  # fmt: skip
