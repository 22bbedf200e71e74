"""How long a GPU takes for calls that are one CUDA graph, as a model's step is: no time of the host is in it."""

import statistics
from collections.abc import Callable, Sequence

import torch

ROUNDS = 15


def seconds(calls: Sequence[Callable[[], object]]) -> float:
    """Of all of them together; the median of ROUNDS replays."""
    for call in calls:  # compiles it, and fills torch's memory pools
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times_ms: list[float] = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times_ms.append(begin.elapsed_time(end))
    return statistics.median(times_ms) / 1e3
