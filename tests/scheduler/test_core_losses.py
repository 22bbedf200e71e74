"""The scheduler when its peers come, go, and come back: no token is lost or repeated."""

import pytest
from tests.scheduler.harness import (
    EXECUTOR,
    OTHER_EXECUTOR,
    OTHER_TOKENIZER,
    TOKENIZER,
    VOCAB,
    SchedulerRig,
    completion,
    make_model,
    make_prompt,
)

from octavo.services.scheduler.core import ORPHANED_S, Inbox
from octavo.shared.messages import (
    ExecutorReady,
    Heartbeat,
    Join,
    Ready,
    Reset,
    Stats,
    Step,
    StepFailed,
    Tokens,
    unpack,
)
from octavo.shared.transport import HEARTBEAT_S, SILENCE_S, Address

FAILURES = [
    Inbox(from_executor=[(EXECUTOR, StepFailed(0, 1, "out of memory"))]),
    Inbox(lost=[EXECUTOR]),
]


# Tokenizers come and go


def test_a_tokenizer_is_greeted_with_the_model() -> None:
    rig = SchedulerRig()
    rig.hear(Join(b"boot"))
    assert rig.sent[0] == (
        TOKENIZER,
        Ready(b"8 bytes!", rig.model, Stats(num_blocks=rig.model.num_blocks, block_size=4)),
    )


def test_tokenizers_that_came_first_hear_of_the_model_when_it_is_there() -> None:
    rig = SchedulerRig(has_executor=False)
    rig.hear(Join(b"boot"))
    assert not any(isinstance(message, Ready) for _, message in rig.sent)
    rig.connect_executor()
    assert (TOKENIZER, Ready(b"8 bytes!", rig.model, Stats(num_blocks=rig.model.num_blocks, block_size=4))) in rig.sent


def test_a_request_without_its_tokenizer_goes_on_until_its_deadline() -> None:
    rig = SchedulerRig(make_model(num_blocks=1000))
    request = rig.enqueue(make_prompt(5), max_tokens=3000)
    rig.step(Inbox(lost=[TOKENIZER]))
    rig.pass_time(ORPHANED_S - 1, OTHER_TOKENIZER)
    rig.settle()
    assert not rig.is_empty()
    rig.pass_time(2, OTHER_TOKENIZER)
    rig.run_all()
    assert rig.is_empty()
    assert len(rig.received(request)) < 3000


def test_a_silent_tokenizer_is_given_up() -> None:
    rig = SchedulerRig(make_model(num_blocks=1000))
    rig.enqueue(make_prompt(5), max_tokens=3000)
    rig.pass_time(SILENCE_S + ORPHANED_S + 2)
    rig.run_all()
    assert rig.is_empty()


def test_an_orphan_that_another_tokenizer_brings_back_in_time_lives() -> None:
    rig = SchedulerRig()
    request = rig.enqueue(make_prompt(5), max_tokens=20)
    rig.step(Inbox(lost=[TOKENIZER]))
    rig.pass_time(ORPHANED_S - 1, OTHER_TOKENIZER)
    rig.hear(request, OTHER_TOKENIZER)
    rig.pass_time(ORPHANED_S, OTHER_TOKENIZER)
    rig.run_all()
    assert rig.received(request, OTHER_TOKENIZER) == completion(request)


def test_a_tokenizer_that_was_given_up_too_early_keeps_its_requests() -> None:
    rig = SchedulerRig()
    request = rig.enqueue(make_prompt(5), max_tokens=20)
    rig.step(Inbox(lost=[TOKENIZER]))
    rig.hear(Heartbeat())
    rig.pass_time(ORPHANED_S + 1, TOKENIZER)
    rig.run_all()
    assert rig.received(request) == completion(request)


def test_blocks_of_an_expired_orphan_are_used_at_once() -> None:
    rig = SchedulerRig(make_model(num_slots=1))
    rig.enqueue(make_prompt(5, 1), max_tokens=200)
    waiting = rig.enqueue(make_prompt(5, 2), max_tokens=2, address=OTHER_TOKENIZER)
    rig.step(Inbox(lost=[TOKENIZER]))
    rig.settle()
    rig.settle()
    rig.pass_time(ORPHANED_S + 1, OTHER_TOKENIZER)
    rig.run_all()
    assert rig.received(waiting, OTHER_TOKENIZER) == completion(waiting)


# Executors come and go


def test_requests_wait_for_the_executor() -> None:
    rig = SchedulerRig(has_executor=False)
    request = rig.enqueue(make_prompt(5), max_tokens=9)
    assert rig.scheduler.stats().num_waiting == 1
    rig.connect_executor()
    rig.run_all()
    assert rig.received(request) == completion(request)


def test_requests_that_waited_for_an_executor_are_held_to_its_limits() -> None:
    rig = SchedulerRig(has_executor=False)
    rig.enqueue([VOCAB], max_tokens=9)
    long = rig.enqueue(make_prompt(9), max_tokens=9)
    good = rig.enqueue(make_prompt(5), max_tokens=3)
    rig.connect_executor(model=make_model(num_blocks=2, block_size=4))
    rig.run_all()
    assert [error.status for error in rig.refusals()] == [400, 400]
    assert rig.received(long) == []
    assert rig.received(good) == completion(good)
    assert rig.is_empty()


@pytest.mark.parametrize("failure", FAILURES, ids=["loud", "silent"])
@pytest.mark.parametrize("num_settled", range(0, 8, 2))
def test_all_streams_go_on_after_an_executor_fails(failure: Inbox, num_settled: int) -> None:
    rig = SchedulerRig(make_model(max_step=16, num_slots=3))
    requests = [rig.enqueue(make_prompt(10, first), max_tokens=9) for first in range(5)]
    for _ in range(num_settled):
        rig.settle()
    rig.step(failure)
    assert not rig.scheduler.is_ready
    rig.connect_executor()
    rig.run_all()
    assert [rig.received(each) for each in requests] == [completion(each) for each in requests]
    assert [rig.reasons(each) for each in requests] == [["length"]] * 5
    assert rig.is_empty()


def test_after_a_failure_the_oldest_goes_first() -> None:
    rig = SchedulerRig(make_model(num_slots=2))
    requests = [rig.enqueue(make_prompt(5, first), max_tokens=20) for first in range(4)]
    rig.settle()
    rig.step(Inbox(lost=[EXECUTOR]))
    rig.connect_executor()
    step = rig.steps[0]
    assert [unpack(new.token_ids)[0] for new in step.new] == [0, 100]
    rig.run_all()
    assert all(rig.received(each) == completion(each) for each in requests)


def test_each_executor_begins_with_a_new_epoch() -> None:
    rig = SchedulerRig()
    rig.connect_executor(OTHER_EXECUTOR)
    epochs = [message.epoch for _, message in rig.to_executor if isinstance(message, Reset)]
    assert len(set(epochs)) == 2
    assert epochs == sorted(epochs)


def test_two_schedulers_do_not_begin_with_the_same_epoch() -> None:
    """Or else a slow executor's results for the one that died would be taken for its successor's."""
    first, second = SchedulerRig(has_executor=False), SchedulerRig(has_executor=False)
    second.scheduler = type(second.scheduler)(b"and more", 100)
    first.connect_executor()
    second.connect_executor()
    assert first.to_executor[0] != second.to_executor[0]


def test_results_of_an_executor_that_was_given_up_are_ignored() -> None:
    rig = SchedulerRig()
    request = rig.enqueue(make_prompt(5), max_tokens=9)
    late = rig.run_step()
    rig.connect_executor(OTHER_EXECUTOR)
    rig.step(Inbox(from_executor=[(EXECUTOR, late), (EXECUTOR, StepFailed(0, 1, "out of memory"))]))
    assert rig.received(request) == []
    assert rig.scheduler.is_ready


def test_a_greeting_of_the_executor_at_work_changes_nothing() -> None:
    rig = SchedulerRig()
    request = rig.enqueue(make_prompt(5), max_tokens=9)
    rig.settle()
    num_resets = sum(isinstance(message, Reset) for _, message in rig.to_executor)
    rig.step(Inbox(from_executor=[(EXECUTOR, ExecutorReady(b"", rig.model))]))
    rig.run_all()
    assert rig.received(request) == completion(request)
    assert sum(isinstance(message, Reset) for _, message in rig.to_executor) == num_resets


def test_an_executor_whose_place_was_taken_does_not_come_back() -> None:
    rig = SchedulerRig()
    rig.step(Inbox(from_executor=[(Address(b"first"), ExecutorReady(b"first", rig.model))]))
    rig.step(Inbox(from_executor=[(Address(b"second"), ExecutorReady(b"second", rig.model))]))
    num_resets = sum(isinstance(message, Reset) for _, message in rig.to_executor)
    rig.step(Inbox(from_executor=[(Address(b"first"), ExecutorReady(b"first", rig.model))]))
    assert sum(isinstance(message, Reset) for _, message in rig.to_executor) == num_resets


def test_results_of_an_earlier_epoch_are_ignored() -> None:
    rig = SchedulerRig()
    request = rig.enqueue(make_prompt(5), max_tokens=9)
    late = rig.run_step()
    rig.connect_executor(OTHER_EXECUTOR)
    rig.step(Inbox(from_executor=[(OTHER_EXECUTOR, late)]))
    assert rig.received(request) == []
    rig.run_all()
    assert rig.received(request) == completion(request)


def test_counters_go_on_after_an_executor_fails() -> None:
    rig = SchedulerRig()
    rig.enqueue(make_prompt(8), max_tokens=9)
    rig.run_all()
    before = rig.scheduler.stats()
    rig.step(Inbox(lost=[EXECUTOR]))
    assert rig.scheduler.stats().num_steps == before.num_steps
    rig.connect_executor()
    rig.enqueue(make_prompt(8), max_tokens=9)
    rig.run_all()
    after = rig.scheduler.stats()
    assert (after.num_steps, after.generation_tokens, after.prefix_queries) == (18, 18, 16)


# Heartbeats


def test_everyone_hears_twice_a_second_that_the_scheduler_lives() -> None:
    rig = SchedulerRig()
    rig.hear(Heartbeat())
    rig.now += HEARTBEAT_S
    outbox = rig.step()
    [(tokenizer, to_tokenizer)] = outbox.to_tokenizers
    [(executor, to_executor)] = outbox.to_executor
    assert (tokenizer, executor) == (TOKENIZER, EXECUTOR)
    assert isinstance(to_tokenizer, Heartbeat) and to_tokenizer.is_ready
    assert isinstance(to_executor, Heartbeat)
    assert rig.step() == type(outbox)([], [])


def test_without_an_executor_the_scheduler_is_not_ready() -> None:
    rig = SchedulerRig(has_executor=False)
    rig.now += HEARTBEAT_S
    rig.hear(Heartbeat())
    [beat] = [message for _, message in rig.sent if isinstance(message, Heartbeat)]
    assert not beat.is_ready


def test_one_step_sends_one_message_to_each_tokenizer() -> None:
    rig = SchedulerRig()
    for first in range(6):
        rig.enqueue(make_prompt(5, first), 9, address=(TOKENIZER, OTHER_TOKENIZER)[first % 2])
    rig.settle()
    rig.settle()
    rig.sent.clear()
    rig.settle()
    assert [len(message.ids) for _, message in rig.sent if isinstance(message, Tokens)] == [3, 3]
    assert any(isinstance(message, Step) for _, message in rig.to_executor)
