"""The rules of the scheduler that are a matter of choice, one function each."""

from bisect import bisect_right, insort
from collections.abc import Iterable
from itertools import accumulate
from operator import add

from octavo.services.scheduler.request import Request

LOOKAHEAD = 16
"""Waiting requests that are looked at when the first does not fit."""
MAX_OVERTAKEN = 64
"""A request that others have overtaken so often is not overtaken again."""


def victim(running: Iterable[Request]) -> Request:
    """Whom to preempt: the latest to arrive of those that were preempted least often."""
    return max(running, key=lambda request: (-request.num_preemptions, request.arrival))


def expected_output(request: Request, typical: float, block_size: int) -> int:
    """How many tokens a request will yet generate, as far as one can tell."""
    return max(min(request.num_left, max(int(typical) - request.num_output, block_size)), 1)


class FuturePeak:
    """The most KV that requests will hold at once if each runs to its end, in tokens.

    They all grow at one token a step; when the one with the i-th longest rest ends, it and those with longer
    rests are what is left. Source: "Past-future scheduler", LightLLM, ASPLOS 2025.
    """

    def __init__(self, requests: Iterable[tuple[int, int]]) -> None:
        """Each request as (tokens now, tokens to come)."""
        self._longest_first = sorted(((-rest, now) for now, rest in requests))
        self._prepare()

    @property
    def num_held(self) -> int:
        """Tokens that all hold now."""
        return self._held[-1]

    def with_one(self, now: int, rest: int) -> int:
        """The peak if one more request ran, in O(log n)."""
        place = bisect_right(self._longest_first, (-rest, now))
        own = self._held[place] + now + (place + 1) * rest
        return max(self._peak_before[place], own, self._peak_behind[place] + now)

    def add(self, now: int, rest: int) -> None:
        """One more request runs."""
        insort(self._longest_first, (-rest, now))
        self._prepare()

    def _prepare(self) -> None:
        """Running sums and maxima; element i is that of the first i requests, or of those from i on."""
        rests = [-rest for rest, _ in self._longest_first]
        self._held = list(accumulate((now for _, now in self._longest_first), initial=0))
        peaks = [
            held + num_left * rest
            for num_left, (held, rest) in enumerate(zip(self._held[1:], rests, strict=True), start=1)
        ]
        self._peak_before = list(accumulate(peaks, max, initial=0))
        # With one more before them, each of these requests ends with one more left.
        shifted = map(add, reversed(peaks), reversed(rests))
        self._peak_behind = list(accumulate(shifted, max, initial=0))[::-1]


def retry_after_s(num_waiting: int, finished_per_s: float) -> int:
    """When a refused client should come back: about when the queue before it is worked off."""
    return max(1, min(60, round(num_waiting / finished_per_s))) if finished_per_s > 0 else 1
