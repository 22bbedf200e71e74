"""The rows of a step's result, sorted by the tokenizer that each goes to."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import TypeVar

import msgspec

from octavo.services.scheduler.request import Request, has_stopped
from octavo.shared.messages import INT32_BYTES, Begin, RequestId, StepResult, Tokens, pack
from octavo.shared.transport import Address

Value = TypeVar("Value")
_NONE: Mapping[RequestId, bytes] = MappingProxyType({})
_NO_BEGINS: Mapping[RequestId, Begin] = MappingProxyType({})


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

    def message(
        self,
        starts: bytes,
        tokens: Sequence[int],
        reasons: dict[RequestId, str],
        logprobs: Mapping[RequestId, bytes] = _NONE,
        prompt_logprobs: Mapping[RequestId, bytes] = _NONE,
        begins: Mapping[RequestId, Begin] = _NO_BEGINS,
    ) -> Tokens:
        """What the tokenizer is told; `reasons` are of all requests that end with this step, logprobs of any, `begins`
        of those that have their first token."""
        finished, of_tokens, of_prompts = (
            self._by_row(reasons),
            self._by_row(logprobs),
            self._by_row(prompt_logprobs),
        )
        packed = pack(self.choose(tokens))
        return Tokens(self.ids, starts, b"", packed, finished, of_tokens, of_prompts, self._by_row(begins))

    def _by_row(self, values: Mapping[RequestId, Value]) -> dict[int, Value]:
        return {row: values[id] for row, id in enumerate(self.ids) if id in values} if values else {}


def group_rows(owners: Sequence[Request | None]) -> list[TokenizerRows]:
    """Rows by tokenizer; those without an owner go nowhere."""
    by_route: dict[Address, tuple[list[int], list[Request]]] = {}
    for row, request in enumerate(owners):
        if request is not None:
            rows, requests = by_route.setdefault(request.route, ([], []))
            rows.append(row)
            requests.append(request)
    return [_rows_of(route, *members, len(owners)) for route, members in by_route.items()]


def stopped(groups: list[TokenizerRows], tokens: "array[int]") -> list[Request]:
    """Requests whose newest token is one that they stop at."""
    stopped = []
    for group in groups:
        for request, token in zip(group.requests, group.choose(tokens), strict=True):
            if token in request.params.stop_token_ids and has_stopped(request):
                request.finish_reason = "stop"
                stopped.append(request)
    return stopped


def new_logprobs(
    groups: list[TokenizerRows], result: StepResult
) -> tuple[dict[RequestId, bytes], dict[RequestId, bytes]]:
    """What the requests of a step's rows are to be told: logprobs of their new tokens, and of their prompts."""
    if not result.logprobs and not result.prompt_logprobs:
        return {}, {}
    of_tokens, of_prompts = {}, {}
    for request in (request for group in groups for request in group.requests):
        if request.params.logprobs is not None:
            of_tokens[request.id] = request.logprobs_from(request.num_output - 1)
        if request.owes_prompt_logprobs:
            request.owes_prompt_logprobs = False
            of_prompts[request.id] = bytes(request.prompt_logprobs)
    return of_tokens, of_prompts


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
