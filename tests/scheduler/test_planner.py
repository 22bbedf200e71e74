"""The planner: who runs, in which blocks, and what each step computes."""

import msgspec
import pytest
from tests.scheduler.harness import PlannerRig, is_right, make_model, make_prompt, tokens_of

from octavo.services.scheduler.policy import LOOKAHEAD, MAX_OVERTAKEN
from octavo.services.scheduler.request import Request, State
from octavo.shared.messages import StepResult, pack, unpack

# Admission, chunks, and the ends of completions


def test_without_requests_no_step_is_planned() -> None:
    assert PlannerRig(make_model()).plan() is None


@pytest.mark.parametrize("max_tokens", [1, 2, 4, 5, 6, 30])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 8])
def test_a_completion_has_exactly_max_tokens(length: int, max_tokens: int) -> None:
    rig = PlannerRig(make_model())
    request = rig.add(make_prompt(length), max_tokens)
    rig.run_all()
    assert request.num_output == max_tokens
    assert is_right(request)
    assert rig.planner.pool.num_held == 0


def test_a_completion_that_ends_while_planning_ahead_wastes_no_row() -> None:
    rig = PlannerRig(make_model())
    rig.add(make_prompt(5), max_tokens=2)
    assert rig.plan() is not None and rig.plan() is not None
    assert rig.plan() is None


def test_a_completion_ends_where_the_context_does() -> None:
    rig = PlannerRig(make_model(num_blocks=4, block_size=4))
    request = rig.add(make_prompt(10), max_tokens=1000)
    rig.run_all()
    assert len(request.token_ids) == 16


def test_a_long_prompt_is_computed_in_chunks() -> None:
    rig = PlannerRig(make_model(max_step=16))
    request = rig.add(make_prompt(40), max_tokens=3)
    assert [tokens_of(rig.turn()) for _ in range(3)] == [16, 16, 8]
    rig.run_all()
    assert is_right(request)


def test_chunks_fill_what_decoding_leaves_of_the_budget() -> None:
    rig = PlannerRig(make_model(max_step=16))
    decoding = [rig.add(make_prompt(1, first), max_tokens=20) for first in range(3)]
    rig.turn()
    late = rig.add(make_prompt(30, first=5), max_tokens=2)
    assert [tokens_of(rig.turn()) for _ in range(3)] == [13, 13, 4]
    rig.run_all()
    assert all(is_right(each) for each in [*decoding, late])


def test_a_request_begins_to_be_computed_in_the_step_in_which_another_ends_its_prompt() -> None:
    rig = PlannerRig(make_model(max_step=16))
    rig.add(make_prompt(10, 1), max_tokens=2)
    rig.add(make_prompt(10, 2), max_tokens=2)
    step = rig.plan()
    assert step is not None
    assert unpack(step.chunk_lengths).tolist() == [10, 6]


def test_no_more_requests_run_than_there_are_slots() -> None:
    rig = PlannerRig(make_model(num_slots=2))
    requests = [rig.add(make_prompt(3, first), max_tokens=4) for first in range(5)]
    rig.turn()
    assert len(rig.planner.running) == 2
    rig.run_all()
    assert all(is_right(each) for each in requests)


def test_a_step_that_changes_nothing_says_nothing() -> None:
    rig = PlannerRig(make_model())
    rig.add(make_prompt(5), max_tokens=20)
    rig.turn()
    step = rig.turn()
    assert step is not None
    assert msgspec.structs.astuple(step)[2:] == (b"", [], b"", b"", b"", b"")


def test_a_result_with_a_row_too_few_is_noticed() -> None:
    rig = PlannerRig(make_model())
    rig.add(make_prompt(5), max_tokens=20)
    rig.plan()
    with pytest.raises(AssertionError, match="step 1 has 0 tokens, not 1"):
        rig.planner.commit(StepResult(1, 1, b"", b""))


# Preemption


def tight_rig() -> PlannerRig:
    """Two completions that begin together but cannot both end: 6 blocks of 4; each needs 5."""
    rig = PlannerRig(make_model(num_blocks=6, block_size=4))
    rig.planner.typical_output = 0.0
    return rig


def test_the_later_request_is_preempted_when_blocks_run_out_and_both_are_right() -> None:
    rig = tight_rig()
    old, new = rig.add(make_prompt(4, 1), max_tokens=16), rig.add(make_prompt(4, 2), max_tokens=16)
    rig.run_all()
    assert (old.num_preemptions, new.num_preemptions) == (0, 1)
    assert is_right(old) and is_right(new)
    assert rig.planner.pool.num_held == 0


def preempt_with_two_in_flight(rig: PlannerRig, request: Request) -> None:
    """Plan and settle until a request is preempted that has two tokens in flight."""
    for _ in range(3):
        rig.plan()
    while not request.num_preemptions:
        rig.settle()
        rig.plan()


def test_a_preempted_request_that_ends_has_no_row_from_then_on() -> None:
    rig = tight_rig()
    rig.add(make_prompt(4, 1), max_tokens=16)
    new = rig.add(make_prompt(4, 2), max_tokens=16)
    preempt_with_two_in_flight(rig, new)
    rig.settle()
    roster = rig.planner.roster
    slots = pack([0, 1])
    assert new in rig.planner.rows_of(slots)
    rig.planner.finish(new)
    assert new not in rig.planner.rows_of(slots)
    assert rig.planner.roster > roster
    num_output = new.num_output
    rig.run_all()
    assert new.num_output == num_output


def test_a_preempted_request_waits_only_once_its_tokens_in_flight_have_come() -> None:
    rig = tight_rig()
    rig.add(make_prompt(4, 1), max_tokens=16)
    new = rig.add(make_prompt(4, 2), max_tokens=16)
    preempt_with_two_in_flight(rig, new)
    rig.settle()
    assert new.state is State.DRAINING
    rig.settle()
    assert new.state is State.WAITING
    rig.run_all()
    assert is_right(new)


def test_a_preempted_request_goes_before_those_that_never_ran() -> None:
    rig = tight_rig()
    rig.add(make_prompt(4, 1), max_tokens=16)
    new = rig.add(make_prompt(4, 2), max_tokens=16)
    for first in range(3, 6):
        rig.add(make_prompt(20, first), max_tokens=2)
    while new.state is not State.WAITING or not new.num_preemptions:
        rig.turn()
    assert rig.planner.waiting[0] is new
    rig.run_all()


def test_resumed_requests_wait_in_the_order_of_their_arrival() -> None:
    rig = PlannerRig(make_model())
    requests = [rig.add(make_prompt(3, first), max_tokens=9) for first in range(4)]
    rig.planner.waiting.clear()
    for request in reversed(requests[1:]):
        request.is_resumed = True
        rig.planner.add(request)
    rig.planner.add(requests[0])
    assert list(rig.planner.waiting) == [*requests[1:], requests[0]]


def test_a_preempted_request_can_be_preempted_while_it_fills() -> None:
    rig = PlannerRig(make_model(num_blocks=8, block_size=4, max_step=6))
    rig.planner.typical_output = 0.0
    old = rig.add(make_prompt(4, 1), max_tokens=26)
    new = rig.add(make_prompt(27, 2), max_tokens=2)
    rig.run_all()
    assert is_right(old) and is_right(new)


# Prefixes


def test_a_prompt_that_comes_again_is_not_computed_again() -> None:
    rig = PlannerRig(make_model())
    rig.add(make_prompt(16), max_tokens=1)
    rig.run_all()
    again = rig.add(make_prompt(16), max_tokens=3)
    # The last block is computed again: the logits of its last token are wanted.
    assert tokens_of(rig.turn()) == 4
    rig.run_all()
    assert is_right(again)
    assert rig.planner.prefix_hits == 12


def test_two_equal_prompts_in_one_step_are_computed_once() -> None:
    rig = PlannerRig(make_model())
    first, second = rig.add(make_prompt(18), max_tokens=5), rig.add(make_prompt(18), max_tokens=5)
    assert tokens_of(rig.turn()) == 18 + 2
    assert first.blocks[:4] == second.blocks[:4] and first.blocks[4] != second.blocks[4]
    rig.run_all()
    assert is_right(first) and is_right(second)


def test_a_prompt_that_is_just_being_computed_is_not_computed_twice() -> None:
    rig = PlannerRig(make_model(max_step=16))
    first = rig.add(make_prompt(41), max_tokens=5)
    rig.plan()
    second = rig.add(make_prompt(41), max_tokens=5)
    rig.plan()
    assert second.state is State.WAITING
    step = rig.plan()
    assert step is not None
    assert unpack(step.chunk_lengths).tolist() == [9, 1]
    rig.run_all()
    assert is_right(first) and is_right(second)


def test_copies_of_a_prompt_share_its_blocks() -> None:
    rig = PlannerRig(make_model())
    copies = [rig.add(make_prompt(17), max_tokens=2) for _ in range(4)]
    rig.turn()
    assert rig.planner.pool.num_held == 4 + len(copies)
    rig.run_all()
    assert all(is_right(each) for each in copies)


def test_shared_blocks_outlive_the_request_that_filled_them() -> None:
    rig = PlannerRig(make_model())
    first = rig.add(make_prompt(17), max_tokens=30)
    second = rig.add(make_prompt(17), max_tokens=30)
    rig.turn()
    rig.planner.finish(first)
    rig.add(make_prompt(100, first=3), max_tokens=2)
    rig.run_all()
    assert is_right(second)


def test_a_completion_is_found_as_a_prefix_of_the_next_turn() -> None:
    rig = PlannerRig(make_model())
    first = rig.add(make_prompt(8), max_tokens=9)
    rig.run_all()
    rig.add([*first.token_ids, 1, 2, 3], max_tokens=1)
    rig.turn()
    assert rig.planner.prefix_hits == 16


def test_a_request_that_has_stopped_leaves_only_what_was_computed() -> None:
    rig = PlannerRig(make_model())
    request = rig.add(make_prompt(3), max_tokens=30)
    rig.turn()
    # Four tokens are known, but the last was never an input.
    rig.planner.finish(request)
    assert rig.planner.pool.find(request.block_hashes) == []


def test_without_caching_nothing_is_shared_and_nothing_hashed() -> None:
    rig = PlannerRig(make_model(), is_caching=False)
    first, second = rig.add(make_prompt(17), max_tokens=9), rig.add(make_prompt(17), max_tokens=9)
    rig.run_all()
    assert is_right(first) and is_right(second)
    assert rig.planner.prefix_hits == 0
    assert len(first.block_hashes) == 4


# Order


def test_a_prompt_that_does_not_fit_does_not_block_those_behind_it() -> None:
    rig = PlannerRig(make_model(num_blocks=10, block_size=4))
    rig.add(make_prompt(20, 1), max_tokens=10)
    rig.turn()
    big, small = rig.add(make_prompt(30, 2), max_tokens=2), rig.add(make_prompt(4, 3), max_tokens=2)
    rig.turn()
    assert big.state is State.WAITING and small.state is State.DECODING
    assert big.num_overtaken == 1
    rig.run_all()
    assert is_right(big) and is_right(small)


def test_nobody_is_overtaken_too_often() -> None:
    rig = PlannerRig(make_model(num_blocks=10, block_size=4))
    long = rig.add(make_prompt(4, 1), max_tokens=1)
    rig.turn()
    # Small ones keep the pool busy, one always decoding, so that the big one never finds it empty.
    rig.add(make_prompt(4, 9), max_tokens=4)
    rig.turn()
    big = rig.add(make_prompt(38, 2), max_tokens=2)
    for _ in range(3 * MAX_OVERTAKEN):
        rig.add(make_prompt(4, 3), max_tokens=4)
        rig.turn()
    assert big.num_overtaken <= MAX_OVERTAKEN
    assert big.state is State.FINISHED
    rig.run_all()
    assert is_right(big) and is_right(long)


def test_only_the_next_few_may_overtake() -> None:
    rig = PlannerRig(make_model(num_blocks=10, block_size=4, num_slots=4))
    rig.add(make_prompt(20, 1), max_tokens=10)
    rig.turn()
    for first in range(2, 2 + LOOKAHEAD // 8):
        for _ in range(8):
            rig.add(make_prompt(36, first), max_tokens=2)
    small = rig.add(make_prompt(4, 9), max_tokens=2)
    rig.turn()
    assert small.state is State.WAITING
    rig.planner.finish(rig.planner.waiting[0])
    rig.turn()
    assert small.state is State.DECODING


def test_admission_leaves_room_for_those_that_run_to_end() -> None:
    rig = PlannerRig(make_model(num_blocks=10, block_size=4))
    first = rig.add(make_prompt(4, 1), max_tokens=32)
    rig.turn()
    second = rig.add(make_prompt(8, 2), max_tokens=8)
    rig.run_all()
    assert first.num_preemptions == second.num_preemptions == 0
    assert is_right(first) and is_right(second)


# Ends before the time


def test_a_waiting_request_can_be_finished() -> None:
    rig = PlannerRig(make_model())
    request = rig.add(make_prompt(4), max_tokens=4)
    rig.planner.finish(request)
    assert rig.plan() is None


@pytest.mark.parametrize("num_turns", range(6))
def test_a_request_that_is_finished_early_gives_everything_back(num_turns: int) -> None:
    rig = PlannerRig(make_model(max_step=16))
    request, other = rig.add(make_prompt(40, 1), max_tokens=9), rig.add(make_prompt(5, 2), max_tokens=9)
    rig.plan()
    for _ in range(num_turns):
        rig.plan()
        rig.settle()
    rig.planner.finish(request)
    num_output = request.num_output
    rig.run_all()
    assert is_right(other)
    assert rig.planner.pool.num_held == 0
    assert request.num_output == num_output


def test_a_slot_is_not_reused_while_a_result_in_flight_refers_to_it() -> None:
    rig = PlannerRig(make_model(num_slots=1))
    first = rig.add(make_prompt(4, 1), max_tokens=20)
    rig.plan()
    rig.plan()
    rig.planner.finish(first)
    second = rig.add(make_prompt(4, 2), max_tokens=3)
    rig.plan()
    assert second.state is State.WAITING
    rig.settle()
    rig.settle()
    rig.run_all()
    assert is_right(second)


def test_the_end_of_a_long_completion_is_not_filed_before_it_is_near() -> None:
    rig = PlannerRig(make_model(num_blocks=1000))
    request = rig.add(make_prompt(4), max_tokens=3000)
    rig.turn()
    rig.planner.check()
    rig.run_all()
    assert is_right(request)


def test_when_the_executor_is_gone_everyone_is_to_begin_again() -> None:
    rig = tight_rig()
    old, new = rig.add(make_prompt(4, 1), max_tokens=16), rig.add(make_prompt(4, 2), max_tokens=16)
    while not new.num_preemptions:
        rig.plan()
        rig.plan()
        rig.settle()
        rig.settle()
    rig.planner.stop()
    assert old.state is new.state is State.WAITING
    assert not old.blocks and not new.blocks
