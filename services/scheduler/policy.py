"""The rules of the scheduler that are a matter of choice, one function each."""

from collections.abc import Iterable

from octavo.services.scheduler.request import Request

LOOKAHEAD = 16
"""Waiting requests that are looked at when the first does not fit."""
MAX_OVERTAKEN = 64
"""A request that others have overtaken so often is not overtaken again."""


def victim(running: Iterable[Request]) -> Request:
    """Whom to preempt: the latest to arrive, so that the oldest always gets on; those preempted before come last."""
    return max(running, key=lambda request: (-request.num_preemptions, request.arrival))


def expected_output(request: Request, typical: float, block_size: int) -> int:
    """How many tokens a request will yet generate, as far as one can tell."""
    return max(min(request.num_left, max(int(typical) - request.num_output, block_size)), 1)


def peak_tokens(requests: Iterable[tuple[int, int]]) -> int:
    """The most KV that requests will hold at once if each, of (tokens now, tokens to come), runs to its end.

    They all grow at one token a step; when the one with the i-th longest rest ends, it and those with longer rests
    are what is left. Source: "Past-future scheduler", LightLLM, ASPLOS 2025.
    """
    held, peak = 0, 0
    for count, (now, rest) in enumerate(sorted(requests, key=lambda each: -each[1]), start=1):
        held += now
        peak = max(peak, held + count * rest)
    return peak


def retry_after_s(num_waiting: int, finished_per_s: float) -> int:
    """When a refused client should come back: about when the queue before it is worked off."""
    return max(1, min(60, round(num_waiting / finished_per_s))) if finished_per_s > 0 else 1
