"""Time, bytes and flops of each GPU kernel, beside what the GPU can do: run it on an idle one.

    python -m benchmarks.kernels [--only attention] [--out FILE]

The calls of a case are recorded as one CUDA graph, as a model's step is, and the graph is played several times; shown
is the median. So the time of a launch is in it as far as it is in a step: a kernel begins while the one before ends.
The ceilings were measured on one H200: a copy of memory (bytes read and written), and a bfloat16 product of 8192^3;
the cases `copy` and `product` measure them again. What only reads can be a little faster than a copy.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from benchmarks.kernel_cases import Call, Case, all_cases
from benchmarks.timing import seconds

from octavo.services.bench.records import Records, Table, own_version

COPY_TBS = 4.26
BF16_TFLOPS = 802.0
LEAST_CALLS = 20  # in a graph


def main() -> None:
    options = _parser().parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.kernels: torch sees no GPU")
    device = torch.device("cuda")
    cases = [*ceilings(device), *all_cases(device)]
    wanted = [case for case in cases if re.search(options.only, f"{case.kernel} {case.shape}")]
    if not wanted:
        sys.exit(f"benchmarks.kernels: --only {options.only} matches none of {sorted({case.kernel for case in cases})}")
    command = ["python", "-m", "benchmarks.kernels", *sys.argv[1:]]
    with Records(options.out, command, **own_version()) as records:
        table = Table(f"{'kernel':<18}", f"{'shape':<32}", "us", "MB", "Gflop", "TB/s", "of copy", "TFLOP/s", "of bf16")
        for case in wanted:
            torch.manual_seed(0)
            with torch.inference_mode():
                calls = case.make()
                calls *= -(-LEAST_CALLS // len(calls))
                took_s = seconds(calls) / len(calls)
            tbs, tflops = case.num_bytes / took_s / 1e12, case.flops / took_s / 1e12
            shares = {"of_copy": round(tbs / options.copy_tbs, 3), "of_bf16": round(tflops / options.bf16_tflops, 3)}
            records.add(
                kernel=case.kernel, shape=case.shape, us=round(took_s * 1e6, 2), bytes=int(case.num_bytes),
                flops=int(case.flops), tb_s=round(tbs, 3), tflop_s=round(tflops, 1), **shares,
            )  # fmt: skip
            table.add(
                f"{case.kernel:<18}", f"{case.shape:<32}", took_s * 1e6, case.num_bytes / 1e6, case.flops / 1e9, tbs,
                f"{shares['of_copy']:.1%}", tflops, f"{shares['of_bf16']:.1%}",
            )  # fmt: skip
            torch.cuda.empty_cache()


def ceilings(device: torch.device) -> Iterator[Case]:
    """What the GPU can do: the best that anything below can be."""
    size = 2**30

    def copies() -> list[Call]:
        pairs = [[torch.randn(size // 4, device=device) for _ in range(2)] for _ in range(2)]
        return [lambda pair=pair: pair[1].copy_(pair[0]) for pair in pairs]  # type: ignore[misc]  # the pair of each

    def products() -> list[Call]:
        pairs = [[torch.randn(8192, 8192, dtype=torch.bfloat16, device=device) for _ in range(2)] for _ in range(2)]
        return [lambda pair=pair: pair[0] @ pair[1] for pair in pairs]  # type: ignore[misc]  # the pair of each

    yield Case("copy", "1 GiB", 2 * size, 0, copies)
    yield Case("product", "8192 x 8192 x 8192", 3 * 2 * 8192**2, 2 * 8192**3, products)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="REGEX", help="of kernel and shape, such as 'decode|8b qkv'")
    parser.add_argument("--copy-tbs", type=float, default=COPY_TBS, help="ceiling, TB/s (default: %(default)s)")
    parser.add_argument("--bf16-tflops", type=float, default=BF16_TFLOPS, help="ceiling (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="file that a JSON line for each case is added to")
    return parser


if __name__ == "__main__":
    main()
