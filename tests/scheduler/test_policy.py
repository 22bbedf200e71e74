"""The rules of choice: whom to preempt, how much room to leave, when to come back."""

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.services.scheduler.policy import FuturePeak, expected_output, retry_after_s, victim
from octavo.services.scheduler.request import Request
from octavo.shared.messages import RequestId
from octavo.shared.sampling import SamplingParams
from octavo.shared.transport import Address

RUNNING = st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100)), max_size=12)


def make_request(arrival: int, num_preemptions: int = 0, max_tokens: int = 100, num_output: int = 0) -> Request:
    request = Request(RequestId(b"r"), Address(b"t"), SamplingParams(max_tokens), array("i", [1]), b"")
    request.arrival, request.num_preemptions = arrival, num_preemptions
    request.token_ids.extend([0] * num_output)
    return request


def peak_by_hand(running: list[tuple[int, int]]) -> int:
    """Step by step: everyone grows by a token until its end."""
    peak = sum(now for now, _ in running)
    for step in range(1, 1 + max((rest for _, rest in running), default=0)):
        peak = max(peak, sum(now + step for now, rest in running if rest >= step))
    return peak


def test_the_latest_to_arrive_is_preempted_first() -> None:
    old, new = make_request(1), make_request(2)
    assert victim([new, old]) is new


def test_who_was_preempted_before_is_spared() -> None:
    old, new = make_request(1), make_request(2, num_preemptions=1)
    assert victim([new, old]) is old


def test_a_request_is_expected_to_end_where_others_did() -> None:
    assert expected_output(make_request(1, num_output=10), typical=64.0, block_size=16) == 54


def test_a_request_is_never_expected_beyond_its_limit() -> None:
    assert expected_output(make_request(1, max_tokens=20, num_output=10), typical=64.0, block_size=16) == 10


def test_a_request_longer_than_usual_is_expected_to_take_one_more_block() -> None:
    assert expected_output(make_request(1, num_output=80), typical=64.0, block_size=16) == 16


@settings(deadline=None)
@given(RUNNING, st.integers(0, 100), st.integers(1, 100))
def test_the_peak_with_one_more_is_that_of_a_simulated_future(
    running: list[tuple[int, int]], now: int, rest: int
) -> None:
    assert FuturePeak(running).with_one(now, rest) == peak_by_hand([*running, (now, rest)])


@settings(deadline=None)
@given(RUNNING, RUNNING)
def test_a_peak_grown_one_by_one_equals_one_made_at_once(
    first: list[tuple[int, int]], later: list[tuple[int, int]]
) -> None:
    peak = FuturePeak(first)
    for now, rest in later:
        peak.add(now, rest)
    assert peak.with_one(5, 7) == FuturePeak(first + later).with_one(5, 7)
    assert peak.num_held == sum(now for now, _ in first + later)


def test_a_refused_client_comes_back_when_the_queue_is_worked_off() -> None:
    assert retry_after_s(num_waiting=100, finished_per_s=10.0) == 10
    assert retry_after_s(num_waiting=100, finished_per_s=0.1) == 60
    assert retry_after_s(num_waiting=1, finished_per_s=50.0) == 1


def test_a_refused_client_of_a_fresh_server_comes_back_soon() -> None:
    assert retry_after_s(num_waiting=100, finished_per_s=0.0) == 1
