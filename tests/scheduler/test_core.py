"""The scheduler between its peers: what enters, what is sent, and how requests end."""

import msgspec
import pytest
from tests.scheduler.harness import (
    OTHER_TOKENIZER,
    TOKENIZER,
    VOCAB,
    SchedulerRig,
    completion,
    make_model,
    make_prompt,
)

from octavo.services.scheduler.core import STEPS_AHEAD
from octavo.shared.messages import (
    Enqueue,
    pack,
)


def with_output(request: Enqueue, output: list[int]) -> Enqueue:
    """The same request, sent by someone who has these tokens."""
    return msgspec.structs.replace(request, output_ids=pack(output))


# A request's life


def test_a_request_gets_its_tokens_and_a_reason() -> None:
    rig = SchedulerRig()
    request = rig.enqueue(make_prompt(10), max_tokens=7)
    rig.run_all()
    assert rig.received(request) == completion(request)
    assert rig.reasons(request) == ["length"]
    assert rig.is_empty()


def test_a_completion_of_one_token_ends_with_its_prompt() -> None:
    rig = SchedulerRig()
    request = rig.enqueue(make_prompt(10), max_tokens=1)
    rig.settle()
    assert rig.reasons(request) == ["length"]
    assert not rig.steps and rig.is_empty()


def test_as_many_steps_as_may_be_are_in_flight() -> None:
    rig = SchedulerRig()
    rig.enqueue(make_prompt(10), max_tokens=50)
    assert len(rig.steps) == STEPS_AHEAD
    rig.settle()
    assert len(rig.steps) == STEPS_AHEAD


@pytest.mark.parametrize(("device", "step_s", "ahead"), [("cuda", 0.0005, 3), ("cuda", 0.004, 2), ("cpu", 0.0005, 2)])
def test_one_more_is_in_flight_while_a_gpu_decodes_fast(device: str, step_s: float, ahead: int) -> None:
    rig = SchedulerRig(msgspec.structs.replace(make_model(), device=device))
    rig.enqueue(make_prompt(10), max_tokens=50)
    rig.now = 10.0  # loading, and a prompt, say nothing of it
    for _ in range(10):
        rig.settle()
        rig.now += step_s
    assert len(rig.steps) == ahead
    rig.run_all()
    assert rig.is_empty()


def test_requests_of_two_tokenizers_go_to_their_own() -> None:
    rig = SchedulerRig()
    first = rig.enqueue(make_prompt(5, 1), max_tokens=9)
    second = rig.enqueue(make_prompt(5, 2), max_tokens=9, address=OTHER_TOKENIZER)
    third = rig.enqueue(make_prompt(5, 3), max_tokens=9)
    rig.run_all()
    assert rig.received(first) == completion(first)
    assert rig.received(second, OTHER_TOKENIZER) == completion(second)
    assert rig.received(third) == completion(third)
    assert rig.received(second) == []


def test_a_stop_token_found_late_ends_only_its_own_request() -> None:
    rig = SchedulerRig()
    tokens = completion(rig.make_enqueue(make_prompt(5, 1), max_tokens=20))
    stopping = rig.enqueue(make_prompt(5, 1), max_tokens=20, stops=(tokens[3],))
    other = rig.enqueue(make_prompt(5, 2), max_tokens=20)
    rig.run_all()
    assert rig.received(stopping) == tokens[:4]
    assert rig.reasons(stopping) == ["stop"]
    assert rig.received(other) == completion(other)
    assert rig.reasons(other) == ["length"]


def test_tokens_computed_behind_a_stop_are_not_counted() -> None:
    rig = SchedulerRig()
    tokens = completion(rig.make_enqueue(make_prompt(5), max_tokens=20))
    rig.enqueue(make_prompt(5), max_tokens=20, stops=(tokens[3],))
    rig.run_all()
    assert rig.scheduler.stats().generation_tokens == 4


def test_the_stop_token_of_one_request_does_not_end_another() -> None:
    rig = SchedulerRig()
    tokens = completion(rig.make_enqueue(make_prompt(5, 1), max_tokens=20))
    plain = rig.enqueue(make_prompt(5, 1), max_tokens=20)
    rig.enqueue(make_prompt(5, 2), max_tokens=20, stops=(tokens[3],))
    rig.run_all()
    assert rig.received(plain) == tokens


def test_a_last_token_that_is_a_stop_token_ends_as_stop() -> None:
    rig = SchedulerRig()
    tokens = completion(rig.make_enqueue(make_prompt(5), max_tokens=4))
    request = rig.enqueue(make_prompt(5), max_tokens=4, stops=(tokens[3],))
    rig.run_all()
    assert rig.reasons(request) == ["stop"]


def test_a_stop_of_a_preempted_request_is_told_once() -> None:
    """Its token in flight is the stop, and another behind it is in flight too."""
    rig = SchedulerRig(make_model(num_blocks=6, block_size=4))
    assert rig.scheduler.planner is not None
    rig.scheduler.planner.typical_output = 0.0
    tokens = completion(rig.make_enqueue(make_prompt(4, 2), max_tokens=16))
    old = rig.enqueue(make_prompt(4, 1), max_tokens=16)
    new = rig.enqueue(make_prompt(4, 2), max_tokens=16, stops=(tokens[7],))
    rig.run_all()
    assert rig.scheduler.stats().num_preemptions == 1
    assert rig.received(new) == tokens[:8]
    assert rig.reasons(new) == ["stop"]
    assert rig.received(old) == completion(old)
    assert rig.is_empty()


# Cancelling


@pytest.mark.parametrize("num_settled", range(6))
def test_a_cancelled_request_leaves_nothing_whatever_it_is_doing(num_settled: int) -> None:
    """40 tokens in steps of 16: it fills for three steps, then decodes for three, and drains in the last."""
    rig = SchedulerRig(make_model(max_step=16))
    request = rig.enqueue(make_prompt(40, 1), max_tokens=4)
    for _ in range(num_settled):
        rig.settle()
    num_received = len(rig.received(request))
    rig.cancel(request)
    rig.run_all()
    assert len(rig.received(request)) == num_received
    assert rig.reasons(request) == []
    assert rig.is_empty()


def test_a_waiting_request_can_be_cancelled() -> None:
    rig = SchedulerRig(make_model(num_slots=1))
    first, waiting = rig.enqueue(make_prompt(5, 1), 9), rig.enqueue(make_prompt(5, 2), 9)
    rig.cancel(waiting)
    rig.run_all()
    assert rig.received(waiting) == []
    assert rig.received(first) == completion(first)
    assert rig.is_empty()


def test_a_request_that_waits_for_an_executor_can_be_cancelled() -> None:
    rig = SchedulerRig(has_executor=False)
    request = rig.enqueue(make_prompt(5), 9)
    rig.cancel(request)
    rig.connect_executor()
    assert not rig.steps and rig.is_empty()


def test_a_preempted_request_with_tokens_in_flight_can_be_cancelled() -> None:
    rig = SchedulerRig(make_model(num_blocks=6, block_size=4))
    assert rig.scheduler.planner is not None
    rig.scheduler.planner.typical_output = 0.0
    old, new = rig.enqueue(make_prompt(4, 1), 16), rig.enqueue(make_prompt(4, 2), 16)
    while not rig.scheduler.stats().num_preemptions:
        rig.settle()
    num_received = len(rig.received(new))
    rig.cancel(new)
    rig.run_all()
    assert len(rig.received(new)) == num_received
    assert rig.received(old) == completion(old)
    assert rig.is_empty()


def test_only_the_tokenizer_that_has_a_request_can_cancel_it() -> None:
    rig = SchedulerRig()
    request = rig.enqueue(make_prompt(5), max_tokens=9)
    rig.cancel(request, OTHER_TOKENIZER)
    rig.run_all()
    assert rig.received(request) == completion(request)


def test_cancelling_what_nobody_knows_does_nothing() -> None:
    rig = SchedulerRig()
    rig.cancel(rig.make_enqueue(make_prompt(5), 9))
    assert rig.is_empty()


# What may not enter


def test_a_token_id_outside_the_vocabulary_is_refused() -> None:
    rig = SchedulerRig()
    rig.enqueue([1, VOCAB, 2], max_tokens=9)
    rig.enqueue([1, -1, 2], max_tokens=9)
    assert [error.status for error in rig.refusals()] == [400, 400]
    assert "token id 1000 is outside the vocabulary; ids are 0 to 999" in rig.refusals()[0].message
    assert rig.is_empty()


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    rig = SchedulerRig(make_model(num_blocks=4, block_size=4))
    rig.enqueue(make_prompt(16), max_tokens=9)
    [error] = rig.refusals()
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert "it has 16 tokens; this model takes 16" in error.message
    assert rig.is_empty()


def test_the_longest_prompt_gets_one_token() -> None:
    rig = SchedulerRig(make_model(num_blocks=4, block_size=4))
    request = rig.enqueue(make_prompt(15), max_tokens=9)
    rig.run_all()
    assert rig.received(request) == completion(request)[:1]
    assert rig.reasons(request) == ["length"]


def test_an_empty_prompt_is_refused() -> None:
    rig = SchedulerRig()
    rig.enqueue([], max_tokens=9)
    assert [error.status for error in rig.refusals()] == [400]


def test_bytes_that_are_no_token_ids_are_refused() -> None:
    rig = SchedulerRig()
    request = rig.make_enqueue(make_prompt(4), max_tokens=9)
    rig.hear(msgspec.structs.replace(request, prompt_ids=b"12345"))
    rig.hear(msgspec.structs.replace(request, output_ids=b"123"))
    assert [error.status for error in rig.refusals()] == [400, 400]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    rig = SchedulerRig(make_model(num_slots=1), max_queued=2)
    accepted = [rig.enqueue(make_prompt(5, first), max_tokens=9) for first in range(3)]
    rig.enqueue(make_prompt(5, 9), max_tokens=9)
    [error] = rig.refusals()
    assert (error.status, error.retry_after_s) == (429, 1)
    assert "2 requests are waiting; at most 2 may wait" in error.message
    rig.run_all()
    assert [rig.received(each) for each in accepted] == [completion(each) for each in accepted]


def test_how_long_a_refused_client_waits_depends_on_the_pace() -> None:
    rig = SchedulerRig(make_model(num_slots=1), max_queued=40)
    for _ in range(5):
        rig.enqueue(make_prompt(5), max_tokens=1)
        rig.run_all()
    rig.pass_time(5.0, TOKENIZER)
    for _ in range(42):
        rig.enqueue(make_prompt(5), max_tokens=1)
    [error] = rig.refusals()
    assert error.retry_after_s == 40


def test_a_full_queue_still_takes_back_a_stream_that_has_begun() -> None:
    rig = SchedulerRig(make_model(num_slots=1), max_queued=1)
    rig.enqueue(make_prompt(5, 1), max_tokens=9)
    rig.enqueue(make_prompt(5, 2), max_tokens=9)
    request = rig.make_enqueue(make_prompt(5, 3), max_tokens=9)
    known = completion(request)[:4]
    rig.hear(with_output(request, known))
    rig.run_all()
    assert rig.refusals() == []
    assert rig.received(request, num_known=4) == completion(request)[4:]


# Sent again


def test_a_request_that_is_sent_again_gets_exactly_what_its_sender_lacks() -> None:
    rig = SchedulerRig()
    request = rig.enqueue(make_prompt(5), max_tokens=20)
    for _ in range(6):
        rig.settle()
    rig.sent.clear()
    rig.hear(with_output(request, completion(request)[:2]))
    rig.run_all()
    assert rig.received(request, num_known=2) == completion(request)[2:]
    assert rig.scheduler.stats().prompt_tokens == 5


def test_another_tokenizer_can_take_over() -> None:
    rig = SchedulerRig()
    request = rig.enqueue(make_prompt(5), max_tokens=20)
    for _ in range(6):
        rig.settle()
    rig.hear(with_output(request, completion(request)[:2]), OTHER_TOKENIZER)
    rig.run_all()
    assert rig.received(request) == completion(request)[:6]
    assert rig.received(request, OTHER_TOKENIZER, num_known=2) == completion(request)[2:]


def test_a_finished_request_is_replayed() -> None:
    rig = SchedulerRig()
    request = rig.enqueue(make_prompt(5), max_tokens=20)
    rig.run_all()
    rig.hear(with_output(request, completion(request)[:7]), OTHER_TOKENIZER)
    assert rig.received(request, OTHER_TOKENIZER, num_known=7) == completion(request)[7:]
    assert rig.reasons(request, OTHER_TOKENIZER) == ["length"]
    assert rig.is_empty()


def test_a_scheduler_that_knows_nothing_goes_on_with_a_stream() -> None:
    rig = SchedulerRig()
    request = rig.make_enqueue(make_prompt(5), max_tokens=20)
    rig.hear(with_output(request, completion(request)[:7]))
    rig.run_all()
    assert rig.received(request, num_known=7) == completion(request)[7:]


def test_a_stream_that_lacks_only_its_end_is_ended() -> None:
    rig = SchedulerRig()
    request = rig.make_enqueue(make_prompt(5), max_tokens=20)
    rig.hear(with_output(request, completion(request)))
    assert rig.received(request, num_known=20) == []
    assert rig.reasons(request) == ["length"]
    assert not rig.steps and rig.is_empty()


def test_a_stream_that_has_had_its_stop_token_does_not_go_on() -> None:
    rig = SchedulerRig()
    tokens = completion(rig.make_enqueue(make_prompt(5), max_tokens=20))[:4]
    request = rig.make_enqueue(make_prompt(5), max_tokens=20, stops=(tokens[3],))
    rig.hear(with_output(request, tokens))
    assert rig.reasons(request) == ["stop"]
    assert not rig.steps and rig.is_empty()
