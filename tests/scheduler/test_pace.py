"""Prompts beside decoding requests are cut so that steps end in time, on devices of any speed."""

import pytest
from tests.scheduler.harness import PlannerRig, is_right, make_model, make_prompt

from octavo.services.scheduler.pace import LEAST_TOKENS, Pace
from octavo.shared.messages import unpack
from octavo.shared.step_sizes import MIXED_ROWS

DECODING = 200


class Device:
    """Steps that take a fixed time, one for each request that decodes, and one for each prompt token."""

    def __init__(self, pace: Pace, fixed_s: float, decoding_s: float, token_s: float) -> None:
        self.pace, self.now = pace, 0.0
        self._costs = fixed_s, decoding_s, token_s

    def run(self, num_decoding: int, num_chunk_tokens: int) -> float:
        """Seconds of the step."""
        fixed_s, decoding_s, token_s = self._costs
        seconds = fixed_s + num_decoding * decoding_s + num_chunk_tokens * token_s
        self.now += seconds
        self.pace.settle(self.now, self.now - 2 * seconds, num_decoding, num_chunk_tokens)
        return seconds

    def run_mixed(self, num_decoding: int) -> float:
        tokens = self.pace.most_chunk_tokens(num_decoding)
        assert tokens is not None
        return self.run(num_decoding, tokens)


@pytest.mark.parametrize("token_s", [3e-6, 2e-5, 5e-5])
@pytest.mark.parametrize("is_decoding_first", [True, False])
def test_steps_come_to_take_the_time_they_may(token_s: float, is_decoding_first: bool) -> None:
    device = Device(Pace(0.040), 0.004, 4e-5, token_s)
    for _ in range(50 if is_decoding_first else 0):
        device.run(DECODING, 0)
    seconds = [device.run_mixed(DECODING) for _ in range(40)]
    assert 0.8 * 0.040 < seconds[-1] < 1.05 * 0.040


def test_the_pace_follows_when_more_requests_decode() -> None:
    device = Device(Pace(0.040), 0.004, 4e-5, 2e-5)
    for _ in range(40):
        device.run_mixed(50)
    seconds = [device.run_mixed(500) for _ in range(40)]
    assert seconds[-1] < 1.05 * 0.040


def test_a_slow_device_goes_on_with_prompts_all_the_same() -> None:
    device = Device(Pace(0.040), 0.3, 0.0, 1e-3)
    for _ in range(10):
        device.run_mixed(1)
    tokens = device.pace.most_chunk_tokens(1)
    assert tokens is not None and LEAST_TOKENS / 2 < tokens <= LEAST_TOKENS


def test_rows_fill_whole_tiles() -> None:
    device = Device(Pace(0.040), 0.004, 4e-5, 2e-5)
    for num_decoding in range(1, 300, 7):
        tokens = device.pace.most_chunk_tokens(num_decoding)
        assert tokens is not None and (tokens + num_decoding) % MIXED_ROWS[0][1] == 0
        device.run_mixed(num_decoding)


def test_nobody_waits_means_no_limit() -> None:
    assert Pace(0.040).most_chunk_tokens(0) is None
    assert Pace(None).most_chunk_tokens(100) is None


def test_prompts_are_cut_to_what_may_run_beside_those_that_decode() -> None:
    rig = PlannerRig(make_model(max_step=64))
    rig.add(make_prompt(20), max_tokens=20)
    asked: list[int] = []

    def most(num_decoding: int) -> int | None:
        asked.append(num_decoding)
        return 6 if num_decoding else None

    late = None
    lengths = []
    for turn in range(8):
        step = rig.planner.plan(most)
        assert step is not None
        rig.steps.append(step)
        lengths.append(sum(unpack(step.chunk_lengths)))
        rig.settle()
        if turn == 0:
            late = rig.add(make_prompt(15, first=5), max_tokens=3)
    rig.run_all()
    assert lengths == [20, 6, 6, 3, 0, 0, 0, 0] and asked[:5] == [0, 1, 1, 1, 2]
    assert late is not None and is_right(late)
