"""The workloads of `octavo bench throughput`: (prompt token ids, output tokens), the same in every run."""

import random
from collections.abc import Callable

Workload = list[tuple[list[int], int]]
VOCAB = range(10, 40_000)  # ids that every vocabulary has and that mean nothing special


def random_ids(rng: random.Random, count: int) -> list[int]:
    """Tokens of a prompt that no other one is like."""
    return [rng.randrange(VOCAB.start, VOCAB.stop) for _ in range(count)]


def single() -> Workload:
    """One stream: how fast can one user be served?"""
    return [(random_ids(random.Random(1), 128), 512)]


def mixed() -> Workload:
    """256 requests of 100 to 1,024 tokens in and out, all at once."""
    rng = random.Random(0)
    return [(random_ids(rng, rng.randint(100, 1024)), rng.randint(100, 1024)) for _ in range(256)]


def saturate() -> Workload:
    """1,024 requests of 512 tokens in and 256 out, all at once."""
    rng = random.Random(2)
    return [(random_ids(rng, 512), 256) for _ in range(1024)]


def prefill() -> Workload:
    """32 prompts of 8,192 tokens, one token each."""
    rng = random.Random(3)
    return [(random_ids(rng, 8192), 1) for _ in range(32)]


def shared_prefix() -> Workload:
    """16 prefixes of 2,048 tokens, 32 prompts with each, in random order."""
    rng = random.Random(4)
    requests = []
    for _ in range(16):
        head = random_ids(rng, 2048)
        requests += [(head + random_ids(rng, 64), 64) for _ in range(32)]
    rng.shuffle(requests)
    return requests


WORKLOADS: dict[str, Callable[[], Workload]] = {
    each.__name__: each for each in (single, mixed, saturate, prefill, shared_prefix)
}
