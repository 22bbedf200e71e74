"""Histograms as plain integer counts: cheap to observe into, and small enough to send."""

from bisect import bisect_left

import msgspec

_TOKENS = (*(digit * 10**power for power in range(6) for digit in (1, 2, 5)), 1_000_000)
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip

BOUNDS: dict[str, tuple[float, ...]] = {
    "vllm:time_to_first_token_seconds": _FIRST_TOKEN_S,
    "vllm:inter_token_latency_seconds": _TOKEN_S,
    "vllm:request_time_per_output_token_seconds": _TOKEN_S,
    "vllm:e2e_request_latency_seconds": _REQUEST_S,
    "vllm:request_queue_time_seconds": _REQUEST_S,
    "vllm:request_prefill_time_seconds": _REQUEST_S,
    "vllm:request_decode_time_seconds": _REQUEST_S,
    "vllm:request_inference_time_seconds": _REQUEST_S,
    "vllm:request_prompt_tokens": _TOKENS,
    "vllm:request_generation_tokens": _TOKENS,
    "vllm:request_prefill_kv_computed_tokens": _TOKENS,
    "vllm:request_params_max_tokens": _TOKENS,
    "vllm:request_params_n": (1, 2, 5, 10, 20),
    "vllm:iteration_tokens_total": (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
}
"""The upper bounds of every histogram's buckets, as vLLM has them; those of tokens end at a million for every model."""


class HistogramCounts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was observed so far."""

    name: str
    """A key of BOUNDS."""
    counts: list[int]
    """One for each bucket, not cumulative, and one for what is above all bounds."""
    sum: float

    @classmethod
    def empty(cls, name: str) -> "HistogramCounts":
        return cls(name, [0] * (len(BOUNDS[name]) + 1), 0.0)


class Histogram:
    """Counts values by bucket."""

    __slots__ = ("name", "_bounds", "_counts", "_sum")

    def __init__(self, name: str) -> None:
        """Start at zero. `name` is a key of BOUNDS."""
        self.name = name
        self._bounds = BOUNDS[name]
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value. A value that equals a bound lies below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def counts(self) -> HistogramCounts:
        """A copy of what was observed so far."""
        return HistogramCounts(self.name, self._counts.copy(), self._sum)
