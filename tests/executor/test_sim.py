"""The simulated engine: right tokens from right pages, and wrong ones from any mistake in them."""

import pytest

from octavo.services.executor.sim import SimEngine
from octavo.shared.messages import ModelInfo, NewRequest, Step, StepResult, pack, unpack
from octavo.shared.oracle import expected_tokens
from octavo.shared.sampling import SamplingParams

VOCAB = 1000
INFO = ModelInfo(VOCAB, 64, block_size=4, num_blocks=16, num_slots=4, max_num_batched_tokens=64, device="", dtype="")
PROMPT = [3, 1, 4, 1, 5, 9]
PARAMS = SamplingParams(100)


def new(prompt: list[int], blocks: list[int], slot: int = 0, num_computed: int = 0) -> NewRequest:
    return NewRequest(slot, pack(prompt), num_computed, pack(blocks), PARAMS)


def fill(request: NewRequest, length: int, number: int = 1) -> Step:
    """A step that begins a request with a chunk of it."""
    return Step(7, number, b"", [request], b"", b"", pack([request.slot]), pack([length]))


def decode(engine: SimEngine, count: int) -> list[int]:
    """The tokens of a lone decoding slot in steps that say nothing."""
    return [token for number in range(count) for token in unpack(engine.run(Step(7, number + 2)).token_ids)]


def test_a_prompt_and_its_decoding_follow_the_oracle() -> None:
    engine = SimEngine(INFO, step_ms=0)
    first = engine.run(fill(new(PROMPT, [5, 2, 9, 11]), 6))
    tokens = [*unpack(first.token_ids), *decode(engine, 9)]
    assert first == StepResult(7, 1, pack([0]), pack(tokens[:1]))
    assert tokens == expected_tokens(PROMPT, 10, VOCAB)


def test_a_prompt_in_chunks_samples_at_its_end_only() -> None:
    engine = SimEngine(INFO, step_ms=0)
    assert engine.run(fill(new(PROMPT, [0, 1]), 1)) == StepResult(7, 1, b"", b"")
    assert engine.run(Step(7, 2, chunk_slots=pack([0]), chunk_lengths=pack([2]))) == StepResult(7, 2, b"", b"")
    last = engine.run(Step(7, 3, chunk_slots=pack([0]), chunk_lengths=pack([3])))
    assert unpack(last.token_ids).tolist() == expected_tokens(PROMPT, 1, VOCAB)


def test_blocks_may_grow_while_decoding() -> None:
    engine = SimEngine(INFO, step_ms=0)
    tokens = unpack(engine.run(fill(new(PROMPT, [5, 2]), 6)).token_ids).tolist()
    tokens += decode(engine, 2)
    tokens += unpack(engine.run(Step(7, 4, grown_slots=pack([0]), grown_blocks=pack([13]))).token_ids)
    tokens += decode(engine, 3)
    assert tokens == expected_tokens(PROMPT, 7, VOCAB)


def test_a_cached_prefix_is_read_from_its_blocks() -> None:
    engine = SimEngine(INFO, step_ms=0)
    engine.run(fill(new(PROMPT, [5, 2]), 6))
    again = engine.run(fill(new(PROMPT, [5, 8], slot=1, num_computed=4), 2, number=2))
    tokens = dict(zip(unpack(again.slots), unpack(again.token_ids), strict=True))
    assert tokens[1] == expected_tokens(PROMPT, 1, VOCAB)[0]


def test_a_prefix_of_the_same_step_can_be_shared() -> None:
    engine = SimEngine(INFO, step_ms=0)
    requests = [new(PROMPT, [5, 2]), new(PROMPT, [5, 8], slot=1, num_computed=4)]
    result = engine.run(Step(7, 1, b"", requests, b"", b"", pack([0, 1]), pack([6, 2])))
    assert unpack(result.token_ids).tolist() == expected_tokens(PROMPT, 1, VOCAB) * 2


@pytest.mark.parametrize("blocks", [[6, 8, 1], [5, 3, 1], [2, 5, 1]])
def test_a_wrongly_shared_prefix_ends_in_wrong_tokens(blocks: list[int]) -> None:
    """The right table begins with 5, 2. The last block alone decides the state, yet all are looked at."""
    engine = SimEngine(INFO, step_ms=0)
    prompt = [*PROMPT, 2, 6, 5]
    engine.run(fill(new(prompt, [5, 2, 7]), 9))
    result = engine.run(fill(new(prompt, blocks, slot=1, num_computed=8), 1, number=2))
    tokens = dict(zip(unpack(result.slots), unpack(result.token_ids), strict=True))
    assert tokens[1] != expected_tokens(prompt, 1, VOCAB)[0]


def test_a_block_given_away_too_early_ends_in_wrong_tokens() -> None:
    engine = SimEngine(INFO, step_ms=0)
    engine.run(fill(new(PROMPT, [5, 2]), 6))
    decode(engine, 1)
    thief = new([7, 7, 7, 7, 7], [5, 6], slot=1)
    engine.run(fill(thief, 5, number=3))
    grown = engine.run(Step(7, 4, grown_slots=pack([0]), grown_blocks=pack([13])))
    tokens = dict(zip(unpack(grown.slots), unpack(grown.token_ids), strict=True))
    assert tokens[0] != expected_tokens(PROMPT, 4, VOCAB)[3]


def test_a_released_slot_can_begin_anew_in_the_same_step() -> None:
    engine = SimEngine(INFO, step_ms=0)
    engine.run(fill(new([8, 8], [1]), 2))
    step = Step(7, 2, pack([0]), [new(PROMPT, [5, 2, 3])], b"", b"", pack([0]), pack([6]))
    tokens = [*unpack(engine.run(step).token_ids), *decode(engine, 3)]
    assert tokens == expected_tokens(PROMPT, 4, VOCAB)


def test_a_reset_forgets_every_slot() -> None:
    engine = SimEngine(INFO, step_ms=0)
    engine.run(fill(new(PROMPT, [5, 2]), 6))
    engine.reset()
    assert engine.run(Step(8, 1)) == StepResult(8, 1, b"", b"")
