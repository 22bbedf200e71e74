"""The rows of a step's result, sorted by the tokenizer that each goes to."""

from collections.abc import Callable, Sequence
from operator import itemgetter

import msgspec

from octavo.services.scheduler.request import Request
from octavo.shared.messages import INT32_BYTES, RequestId, Tokens, pack
from octavo.shared.transport import Address


class TokenizerRows(msgspec.Struct, frozen=True):
    """The rows of one tokenizer: columns that stay the same as long as the batch does."""

    route: Address
    requests: list[Request]
    ids: list[RequestId]
    num_output: int
    """Tokens that the first request had when these rows were sorted."""
    first_starts: int
    """What all requests had then: int32 lanes of one large integer."""
    one_each: int
    """1 in every lane."""
    pick: Callable[[Sequence[int]], Sequence[int]] | None
    """Chooses these rows' tokens from those of all rows; None when these are all."""

    def starts(self) -> bytes:
        """The places in their completions of the tokens to come, packed.

        All rows move on by one token a step, so one addition over all lanes does it; no lane can overflow.
        """
        num_steps = self.requests[0].num_output - self.num_output
        starts = self.first_starts + num_steps * self.one_each
        return starts.to_bytes(INT32_BYTES * len(self.ids), "little")

    def choose(self, tokens: Sequence[int]) -> Sequence[int]:
        """Of the tokens of all rows, these rows' own."""
        return tokens if self.pick is None else self.pick(tokens)

    def message(self, starts: bytes, tokens: Sequence[int], reasons: dict[RequestId, str]) -> Tokens:
        """What the tokenizer is told; `reasons` are of all requests that end with this step."""
        finished = {row: reasons[id] for row, id in enumerate(self.ids) if id in reasons} if reasons else {}
        return Tokens(self.ids, starts, b"", pack(self.choose(tokens)), finished)


def group_rows(owners: Sequence[Request | None]) -> list[TokenizerRows]:
    """Rows by tokenizer; those without an owner go nowhere."""
    by_route: dict[Address, tuple[list[int], list[Request]]] = {}
    for row, request in enumerate(owners):
        if request is not None:
            rows, requests = by_route.setdefault(request.route, ([], []))
            rows.append(row)
            requests.append(request)
    return [_rows_of(route, *members, len(owners)) for route, members in by_route.items()]


def _rows_of(route: Address, rows: list[int], requests: list[Request], num_rows: int) -> TokenizerRows:
    pick: Callable[[Sequence[int]], Sequence[int]] | None = None
    if len(rows) == 1 < num_rows:
        pick = itemgetter(slice(rows[0], rows[0] + 1))  # itemgetter of one index would give no sequence
    elif len(rows) < num_rows:
        pick = itemgetter(*rows)
    num_outputs = [request.num_output for request in requests]
    return TokenizerRows(
        route,
        requests,
        [request.id for request in requests],
        num_outputs[0],
        int.from_bytes(pack(num_outputs), "little"),
        int.from_bytes(pack([1] * len(requests)), "little"),
        pick,
    )
