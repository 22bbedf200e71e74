"""Decode attention on a GPU with requests cut evenly and with a work list: time, bytes, share of the memory's speed.

A measurement is a CUDA graph of one step: the work list once, then attention in each of LAYERS layers, whose keys and
values are random and lie in memory of their own, as in real decoding. Both ways are compared with each other first.
"""

import argparse
import random

import torch
from benchmarks.timing import seconds

from octavo.kernels.gpu.decode_attention import decode_attention, page_boxes, scratch_size
from octavo.kernels.gpu.work_list import plan_work

LAYERS = 24
PAGE = 64
COPY_TB_PER_S = 4.26  # of an H200, bytes read and written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--kv-dtype", choices=["bfloat16", "fp8"], default="bfloat16")
    options = parser.parse_args()
    dtype = torch.float8_e4m3fn if options.kv_dtype == "fp8" else torch.bfloat16
    print(f"{'lengths':<24}{'way':<10}{'us/layer':>10}{'MB/layer':>10}{'TB/s':>8}{'share':>8}")
    for name, lengths in workloads().items():
        times = measure(lengths, options.heads, options.kv_heads, options.head_dim, dtype)
        torch.cuda.empty_cache()
        num_bytes = 2 * sum(lengths) * options.kv_heads * options.head_dim * dtype.itemsize
        for way, took_s in times.items():
            speed = num_bytes / took_s / 1e12
            print(f"{name:<24}{way:<10}{took_s * 1e6:>10.1f}{num_bytes / 1e6:>10.1f}", end="")
            print(f"{speed:>8.2f}{speed / COPY_TB_PER_S:>8.1%}", flush=True)


def workloads() -> dict[str, list[int]]:
    """Lengths of the requests, by name."""
    rng = random.Random(0)
    even = {f"{n} x {length}": [length] * n for n, length in ((32, 4096), (64, 1024), (8, 4096), (256, 900))}
    return even | {
        "1 x 32768": [32_768],
        "1 x 1024": [1024],
        "1 x 32768, 63 x 512": [32_768] + [512] * 63,
        "63 x 512, 1 x 32768": [512] * 63 + [32_768],
        "256 of 100 to 2000": [rng.randint(100, 2000) for _ in range(256)],
        "128, zipf": [max(64, 32_768 // rank) for rank in range(1, 129)],
    }


def measure(lengths: list[int], heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> dict[str, float]:
    """Seconds a layer, by way."""
    torch.manual_seed(0)
    requests, most = len(lengths), -(-max(lengths) // PAGE)
    counts = [-(-length // PAGE) for length in lengths]
    blocks = torch.randperm(sum(counts), device="cuda").int()
    tables = torch.zeros(requests, most, dtype=torch.int32, device="cuda")
    for row, (some, count) in enumerate(zip(blocks.split(counts), counts, strict=True)):
        tables[row, :count] = some
    shape = (sum(counts), kv_heads, PAGE, head_dim)
    # As bytes: not all of torch's operators know FP8.
    first = torch.randn(shape, device="cuda").to(dtype).view(torch.uint8)
    caches = [[first.roll(512 * (2 * layer + which)).view(dtype) for which in range(2)] for layer in range(LAYERS)]
    boxes = [(page_boxes(keys), page_boxes(values)) for keys, values in caches]
    slots = torch.arange(requests, device="cuda").int()
    positions = torch.tensor(lengths, device="cuda").int() - 1
    q = torch.randn(requests, heads, head_dim, device="cuda").bfloat16()
    scratch = torch.empty(scratch_size(requests, heads, kv_heads, head_dim), device="cuda")
    outs = {way: torch.empty(LAYERS, *q.shape, dtype=q.dtype, device="cuda") for way in ("even", "balanced")}

    def step(way: str) -> None:
        work = plan_work(slots, positions, tables, kv_heads, PAGE, 1024) if way == "balanced" else None
        for (keys, values), out in zip(boxes, outs[way], strict=True):
            decode_attention(
                q, keys, values, tables, slots, positions, scratch, out, kv_heads, head_dim**-0.5, work=work
            )

    times = {way: seconds([lambda way=way: step(way)]) / LAYERS for way in outs}  # type: ignore[misc]  # a default
    torch.testing.assert_close(outs["even"], outs["balanced"], rtol=2e-2, atol=2e-3)
    return times


if __name__ == "__main__":
    main()
