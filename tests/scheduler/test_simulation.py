"""Whole lives of random requests under random faults: every stream is right and nothing is left behind."""

import pytest
from tests.scheduler.world import World


@pytest.mark.parametrize("seed", range(60))
def test_every_stream_is_right_without_faults(seed: int) -> None:
    world = World(seed, num_clients=12, fault_rate=0.0)
    world.finish()
    world.check_tokens()


@pytest.mark.parametrize("seed", range(1_000, 1_160))
def test_every_stream_is_right_whatever_fails(seed: int) -> None:
    world = World(seed, num_clients=15, fault_rate=0.1)
    for _ in range(60):
        world.turn(may_fail=True)
    world.finish()
    world.check_tokens()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10_000, 13_000))
def test_every_stream_is_right_whatever_fails_for_long(seed: int) -> None:
    world = World(seed, num_clients=40, fault_rate=0.2)
    for _ in range(300):
        world.turn(may_fail=True)
    world.finish()
    world.check_tokens()
