"""The pool of blocks: references, sharing, eviction, and that no block is ever lost or doubled."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.services.scheduler.blocks import BlockPool, OutOfBlocks

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


def published(pool: BlockPool, *contents: bytes) -> list[int]:
    """Blocks with these contents, held by nobody."""
    blocks = pool.take(len(contents))
    for block, content in zip(blocks, contents, strict=True):
        pool.publish(block, content)
    pool.release(blocks)
    return blocks


def test_a_lone_request_gets_blocks_side_by_side() -> None:
    assert BlockPool(8).take(3) == [0, 1, 2]


def test_more_blocks_than_there_are_cannot_be_taken() -> None:
    pool = BlockPool(4)
    pool.take(3)
    with pytest.raises(OutOfBlocks, match="2 blocks wanted; 1 of 4 are there"):
        pool.take(2)
    pool.check([[0, 1, 2]])


def test_released_blocks_can_be_taken_again() -> None:
    pool = BlockPool(2)
    pool.release(pool.take(2))
    assert pool.num_available == 2
    assert sorted(pool.take(2)) == [0, 1]


def test_a_shared_block_is_held_until_its_last_holder_releases_it() -> None:
    pool = BlockPool(2)
    blocks = pool.take(1)
    pool.publish(blocks[0], A)
    pool.share(blocks)
    pool.release(blocks)
    assert pool.num_held == 1
    pool.release(blocks)
    assert pool.num_held == 0


def test_a_cached_block_can_be_shared_by_its_content() -> None:
    pool = BlockPool(4)
    blocks = published(pool, A, B)
    assert pool.find([A, B, C]) == blocks
    assert pool.num_cached(blocks) == 2
    pool.share(blocks)
    assert pool.num_cached(blocks) == 0
    pool.check([blocks])


def test_finding_stops_at_the_first_unknown_block() -> None:
    pool = BlockPool(4)
    [first, _] = published(pool, A, B)
    assert pool.find([A, C, B]) == [first]
    assert pool.find([C, A]) == []


def test_cached_blocks_are_evicted_only_when_none_is_free() -> None:
    pool = BlockPool(3)
    published(pool, A)
    pool.take(2)
    assert len(pool.find([A])) == 1
    pool.take(1)
    assert pool.find([A]) == []


def test_the_least_recently_used_block_is_evicted_first() -> None:
    pool = BlockPool(2)
    published(pool, A)
    published(pool, B)
    used = pool.find([A])
    pool.share(used)
    pool.release(used)
    pool.take(1)
    assert pool.find([A]) == used
    assert pool.find([B]) == []


def test_the_tail_of_a_chain_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(3)
    blocks = published(pool, A, B, C)
    pool.take(1)
    assert pool.find([A, B, C]) == blocks[:2]


def test_the_first_block_with_some_content_stays_the_one_that_is_found() -> None:
    pool = BlockPool(2)
    [first, second] = pool.take(2)
    pool.publish(first, A)
    pool.publish(second, A)
    assert pool.find([A]) == [first]
    pool.release([first, second])
    pool.check([])


def test_an_evicted_block_can_be_published_with_other_content() -> None:
    pool = BlockPool(1)
    published(pool, A)
    published(pool, B)
    assert pool.find([B]) == [0]
    assert pool.find([A]) == []


def test_without_caching_nothing_is_found() -> None:
    pool = BlockPool(2, is_caching=False)
    published(pool, A)
    assert pool.find([A]) == []


def test_a_block_released_too_often_is_noticed() -> None:
    pool = BlockPool(2)
    blocks = pool.take(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(blocks)


def test_a_holder_that_the_pool_does_not_know_is_noticed() -> None:
    pool = BlockPool(2)
    pool.take(1)
    with pytest.raises(AssertionError, match="references differ"):
        pool.check([])


@settings(max_examples=150, deadline=None)
@given(
    num_blocks=st.integers(1, 12),
    events=st.lists(st.tuples(st.sampled_from("tspr"), st.integers(0, 11), st.integers(0, 7)), max_size=60),
)
def test_no_block_is_lost_or_doubled_whatever_the_order_of_events(
    num_blocks: int, events: list[tuple[str, int, int]]
) -> None:
    pool = BlockPool(num_blocks)
    holders: list[list[int]] = []
    contents = [bytes([each]) * 16 for each in range(8)]
    for kind, which, number in events:
        if kind == "t" and number <= pool.num_available:
            holders.append(pool.take(number))
        elif kind == "s":
            found = pool.find(contents[number:])
            pool.share(found)
            holders.append(found)
        elif kind == "p" and holders and holders[which % len(holders)]:
            pool.publish(holders[which % len(holders)][0], contents[number])
        elif kind == "r" and holders:
            pool.release(holders.pop(which % len(holders)))
        pool.check(holders)
        assert pool.num_held + pool.num_available == num_blocks
    for blocks in holders:
        pool.release(blocks)
    pool.check([])
    assert pool.num_available == num_blocks
