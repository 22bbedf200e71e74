"""Every Triton kernel, compiled for an H200 as the engine launches it: what its code needs and makes use of."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton: pip install -e '.[test]' on Linux x86-64")

from tests.gpu_free.launches import FP8, MODELS, OTHERS, launch
from tests.tools.sm90 import REGISTERS, SHARED_BYTES, Launch, h200

KERNELS = Path(__file__).parents[2] / "kernels" / "gpu"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES = [
    ("Qwen3-0.6B", BF16),
    ("Llama-3.2-1B", FP16),
    ("Gemma-2-9B", BF16),
    ("SmolLM2-135M", BF16),  # whose kv heads are no power of two
    ("Qwen3-0.6B" + FP8, BF16),
    *((name, BF16) for name in OTHERS),
]
# Of float32 alone the products are unrolled to many thousand instructions, and take a minute to compile.
SLOW = [(name, dtype) for name in MODELS for dtype in (BF16, FP16) if (name, dtype) not in CASES]
SLOW += [(name + FP8, BF16) for name in MODELS if name != "Qwen3-0.6B"]
SLOW += [("Qwen3-0.6B", FP32), ("Llama-3.2-1B", FP32), *((name, dtype) for name in OTHERS for dtype in (FP16, FP32))]
PARAMS = [*CASES, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)]

TMA = r"cp\.async\.bulk\.tensor"
WGMMA = r"wgmma\.mma_async"
WRITE = r"\b(st|red|atom)\.global|cp\.async\.bulk\.tensor\.\dd\.global"
WIDE_LOAD = r"ld\.global[\w.:]*\.(v4\.b32|v2\.b64)|cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], 0x10"
# What a kernel must use; those not named here are limited by memory, and read 16 bytes at a time.
USES = {
    "decode_attention._decode": [TMA, WGMMA],
    "few_rows._dense_few_rows": [WIDE_LOAD, r"mma\.sync", "ldmatrix"],
    "gated_linear._gated_linear": [TMA, WGMMA],
    "prefill_attention._prefill": [TMA, WGMMA],
    "prefill_hopper._prefill_items": [TMA, WGMMA],
    "work_list._find_shared": [],  # these two read a few kilobytes
    "work_list._plan": [],
    "pages._begin_pages": [],  # writes
}


@pytest.fixture(scope="module")
def compiler(pytestconfig: pytest.Config) -> Iterator[list[Launch]]:
    """What it compiles is kept between runs, in pytest's cache."""
    import triton

    assert pytestconfig.cache is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.knobs.cache, "dir", str(pytestconfig.cache.mkdir("triton")))
        with h200() as launches:
            yield launches


@pytest.fixture(scope="module", params=PARAMS, ids=lambda case: f"{case[0]}-{str(case[1]).removeprefix('torch.')}")
def case(request: pytest.FixtureRequest, compiler: list[Launch]) -> tuple[torch.dtype, list[Launch]]:
    """A dtype, and every kernel that a model launches in it."""
    name, dtype = request.param
    compiler.clear()
    launch(name, dtype)
    return dtype, list({each.compiled.hash: each for each in compiler}.values())


Case = tuple[torch.dtype, list[Launch]]


def test_no_thread_needs_memory_for_its_registers(case: Case) -> None:
    dtype, launches = case
    for each in launches:
        # There are no tensor cores for float32; it is for comparisons.
        if dtype != FP32 or not each.kernel.startswith(("decode", "prefill")):
            assert (each.usage["STACK"], each.usage["LOCAL"]) == (0, 0), str(each)


def test_a_program_fits_on_a_multiprocessor(case: Case) -> None:
    for each in case[1]:
        assert each.shared_bytes <= SHARED_BYTES, str(each)
        assert -(-each.usage["REG"] // 8) * 8 * each.threads <= REGISTERS, str(each)


def test_no_register_is_read_that_nothing_has_written(case: Case) -> None:
    for each in case[1]:
        assert each.unwritten == [], str(each)


def test_memory_and_tensor_cores_are_used_at_their_widest(case: Case) -> None:
    dtype, launches = case
    for each in launches:
        wanted = [one for one in USES.get(each.kernel, [WIDE_LOAD]) if one != WGMMA or dtype != FP32]
        lacking = [one for one in wanted if not re.search(one, each.ptx)]
        assert not lacking, str(each)


def test_a_kernel_waits_for_the_one_before_it_ahead_of_its_first_write(case: Case) -> None:
    for each in case[1]:
        assert "griddepcontrol.launch_dependents" in each.ptx, str(each)
        waits, first_write = each.ptx.find("griddepcontrol.wait"), re.search(WRITE, each.ptx)
        assert first_write is not None and 0 <= waits < first_write.start(), str(each)


def test_no_kernel_is_left_out() -> None:
    with h200(compile=False) as launches:
        for name in [*MODELS, *(name + FP8 for name in MODELS), *OTHERS]:
            launch(name, BF16)
    assert {each.kernel for each in launches} == set(kernels_of_the_sources())


def kernels_of_the_sources() -> Iterator[str]:
    """Each function under @triton.jit or @gluon.jit that no other one names, as "file._kernel"."""
    compiled: dict[str, str] = {}
    named: set[str] = set()
    for path in KERNELS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(".jit" in ast.unparse(d) for d in node.decorator_list):
                compiled[node.name] = f"{path.stem}.{node.name}"
                named |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return (name for function, name in compiled.items() if function not in named)
