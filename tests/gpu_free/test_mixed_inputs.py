"""A step with chunks, told to a recorded graph of more rows: nothing is lost, and rows left over are nobody's."""

import random

import pytest

pytest.importorskip("triton", reason="the kernels' tile size is told by a module that needs Triton")

from octavo.kernels.gpu.chunks import TILE  # behind the skip
from octavo.services.executor.gpu.batch import Plan, plan_step
from octavo.services.executor.gpu.mixed import (
    LEAST_CHUNKS,
    MixedInputs,
    graph_inputs,
    mixed_sizes,
    rows_of_graph,
)
from octavo.services.executor.slots import Slots
from octavo.shared.messages import NewRequest, Step, pack
from octavo.shared.sampling import SamplingParams
from octavo.shared.step_sizes import MIXED_ROWS, round_down

NUM_SLOTS, BLOCK_SIZE = 60, 16
PARAMS = SamplingParams(max_tokens=9, temperature=0.0)


def plan_of(num_decoding: int, lengths: list[int]) -> Plan:
    """A step in which so many requests decode, and prompts of these lengths are computed."""
    slots = Slots(NUM_SLOTS, 40, BLOCK_SIZE, 10**6)

    def begin(number: int, first: int, lengths: list[int]) -> Plan:
        taken = range(first, first + len(lengths))
        new = [
            NewRequest(slot, pack(range(length)), 0, pack([slot] * (-(-length // BLOCK_SIZE))), PARAMS)
            for slot, length in zip(taken, lengths, strict=True)
        ]
        step = Step(1, number, new=new, chunk_slots=pack(taken), chunk_lengths=pack(lengths))
        return plan_step(step, slots)

    begin(1, 0, [3 + place for place in range(num_decoding)])
    return begin(2, num_decoding, lengths)


@pytest.mark.parametrize(
    "num_decoding, lengths", [(0, [1]), (0, [128]), (40, [88]), (7, [100, 64, 65]), (1, [3, 30, 300]), (40, [5] * 15)]
)
def test_every_row_is_told_and_the_rest_is_nobodys(num_decoding: int, lengths: list[int]) -> None:
    plan = plan_of(num_decoding, lengths)
    num_rows = num_decoding + sum(lengths)
    inputs = graph_inputs(num_rows, NUM_SLOTS)
    sections = inputs.sections(plan)
    assert sections is not None and [len(section) for section in sections] == inputs.sizes
    slots, positions, token_ids, decoding, sampled = sections[:5]
    rows, spans, totals, chunk_slots, tile_chunks, tile_starts, num_tiles = sections[5:]

    assert slots[:num_rows] == plan.slots and positions[:num_rows] == plan.positions
    assert set(slots[num_rows:]) <= {NUM_SLOTS}
    assert [token < 0 for token in token_ids] == [row < num_decoding for row in range(inputs.rows)]
    assert sampled[: len(plan.sampled_rows)] == plan.sampled_rows and all(0 <= row < inputs.rows for row in sampled)
    assert decoding == plan.positions[:num_decoding] + [-1] * (inputs.num_decoding - num_decoding)
    # Each row behind those that decode belongs to one tile of one chunk, at the position that the chunk implies.
    covered: list[int] = []
    for chunk, start in list(zip(tile_chunks, tile_starts, strict=True))[: num_tiles[0]]:
        for place in range(start, min(start + TILE, spans[chunk])):
            row = rows[chunk] + place
            covered.append(row)
            assert slots[row] == chunk_slots[chunk]
            assert positions[row] == totals[chunk] - spans[chunk] + place
    assert sorted(covered) == list(range(num_decoding, inputs.rows))


def test_requests_that_share_a_prefix_are_rows_side_by_side() -> None:
    slots = Slots(NUM_SLOTS, 40, BLOCK_SIZE, 10**6)
    prefixes = [random.Random(1).randrange(4) for _ in range(20)]
    new = [
        NewRequest(slot, pack(range(BLOCK_SIZE + 3)), BLOCK_SIZE, pack([prefix, 100 + slot]), PARAMS)
        for slot, prefix in enumerate(prefixes)
    ]
    plan_step(Step(1, 1, new=new, chunk_slots=pack(range(20)), chunk_lengths=pack([3] * 20)), slots)
    plan = plan_step(Step(1, 2), slots)
    assert [prefixes[slot] for slot in plan.slots] == sorted(prefixes) and sorted(plan.slots) == list(range(20))
    assert plan.sampled_slots == plan.slots


def test_a_step_without_a_graph_is_told_in_the_same_way() -> None:
    plan = plan_of(7, [100, 64, 65])
    sections = MixedInputs(len(plan.slots), NUM_SLOTS, 3).sections(plan)
    assert sections is not None
    slots, positions, token_ids, decoding, sampled, rows, lengths, totals = sections[:8]
    assert (slots, positions, token_ids[7:]) == (plan.slots, plan.positions, plan.token_ids)
    assert (decoding[:7], sampled[:10]) == (plan.positions[:7], plan.sampled_rows)
    assert (rows, lengths, totals) == (plan.chunk_rows, plan.chunk_lengths, plan.chunk_totals)


def test_a_step_of_too_many_chunks_is_not_for_a_graph() -> None:
    assert graph_inputs(128, NUM_SLOTS).sections(plan_of(0, [5] * LEAST_CHUNKS)) is None


def test_sections_begin_where_kernels_expect_them() -> None:
    for rows in mixed_sizes(8192, 4096):
        inputs = graph_inputs(rows, random.Random(rows).randrange(1, 2000))
        ends = [start + size for start, size in zip(inputs.starts, inputs.sizes, strict=True)]
        assert all(start % 4 == 0 for start in inputs.starts)
        assert all(end <= start for end, start in zip(ends, inputs.starts[1:], strict=False))


@pytest.mark.parametrize("max_model_len", [256, 300, 512, 1000, 1024, 2048, 5000])
def test_no_position_of_a_rehearsal_is_beyond_the_longest_request(max_model_len: int) -> None:
    """Then all rows of a graph are nobody's."""
    for rows in mixed_sizes(8192, max_model_len):
        sections = graph_inputs(rows, NUM_SLOTS).sections(Plan())
        assert sections is not None
        slots, positions, lengths, totals = sections[0], sections[1], sections[6], sections[7]
        assert (
            set(slots) == {NUM_SLOTS} and max(positions) < max_model_len and sum(lengths[: lengths.index(-1)]) == rows
        )
        assert max(totals) <= max_model_len


def test_steps_are_cut_to_what_there_are_graphs_for() -> None:
    for rows in range(128, 8193):
        cut = round_down(rows, MIXED_ROWS)
        assert rows_of_graph(cut) == cut <= rows < cut + 512


def test_small_contexts_have_no_graphs() -> None:
    assert mixed_sizes(8192, 255) == []
    assert mixed_sizes(300, 256) == [128, 256, 384]


def test_every_step_up_to_the_largest_has_a_graph_with_room_for_it() -> None:
    sizes = mixed_sizes(8192, 4096)
    for num_rows in range(1, sizes[-1] + 1):
        rows = rows_of_graph(num_rows)
        assert rows in sizes and num_rows <= rows < num_rows + max(128, num_rows // 4)
