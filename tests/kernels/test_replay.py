"""Recorded loops do what they did when they were called one by one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from octavo.kernels.activation import gated
from octavo.kernels.linear import few_rows_linear
from octavo.kernels.native import find_loop
from octavo.kernels.replay import Recorder, record
from octavo.kernels.rms_norm import rms_norm

MAX_ROWS = 8
PARTS = 5

needs_loops = pytest.mark.skipif(
    find_loop("replay", torch.float32, torch.device("cpu")) is None, reason="needs numba, which compiles the loops"
)


def part(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Rows of 64, through heads of 16 that are normed as rows of their own."""
    up, down = weights
    heads = rms_norm(x.view(-1, 4, 16), None, 1e-5).flatten(1)
    return few_rows_linear(gated(few_rows_linear(heads, up, None, None), "silu"), down, None, x)


def weights(dtype: torch.dtype) -> list[Tensor]:
    return [(torch.randn(128, 64) * 0.1).to(dtype), (torch.randn(64, 64) * 0.1).to(dtype)]


@needs_loops
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_replay_is_what_it_recorded_for_any_number_of_rows(dtype: torch.dtype) -> None:
    x, parts = torch.zeros(MAX_ROWS, 64, dtype=dtype), [weights(dtype) for _ in range(PARTS)]

    def compute(recorder: Recorder) -> Tensor:
        y = x
        for each in parts:
            recorder.begin_part()
            y = part(y, each)
        return y

    recorded = record(compute, MAX_ROWS)
    assert recorded is not None
    replay, out = recorded
    for rows in (1, MAX_ROWS, 3, 2, 7, 1):
        out.fill_(torch.nan)
        expected = x[:rows].copy_(torch.randn(rows, 64))
        for each in parts:
            expected = part(expected.clone(), each)
        replay.run(rows)
        assert torch.equal(out[:rows], expected)
        assert out[rows:].isnan().all(), "a replay wrote behind its rows"


@needs_loops
@torch.inference_mode()
def test_recording_changes_nothing_and_parts_share_two_memories() -> None:
    x, recorders = torch.ones(MAX_ROWS, 64), []

    def compute(recorder: Recorder) -> Tensor:
        recorders.append(recorder)
        y = x
        for _ in range(PARTS):
            recorder.begin_part()
            y = rms_norm(y, None, 1e-5)
        return y

    assert record(compute, MAX_ROWS) is not None
    assert (x == 1).all() and len(recorders[0].memory) == 2


@needs_loops
@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x + 1,
        lambda x: x.relu_(),
        lambda x: x.t().flatten(),
        lambda x: rms_norm(x.t(), None, 1e-5),
        lambda x: rms_norm(x[:1], None, 1e-5).sum(),
    ],
)
@torch.inference_mode()
def test_what_is_not_a_loop_is_not_recorded(operation: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(MAX_ROWS, 64)
    assert record(lambda recorder: operation(x), MAX_ROWS) is None
    assert (x == 1).all()
    assert torch.equal(rms_norm(x, None, 0.0), x), "loops run again after a recording that failed"
