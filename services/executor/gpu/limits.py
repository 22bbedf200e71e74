"""What a GPU's kernels and memory do not allow, each told in one sentence."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from octavo.kernels.gpu.hardware import box_width
from octavo.services.executor.cache import uniform_attention
from octavo.services.executor.memory import GIB
from octavo.services.executor.models.spec import Decoder
from octavo.shared.errors import ConfigError, ModelError

BLOCK_SIZES = (16, 32, 64, 128)  # of pages that are one tile of a matrix product
MOST_HEAD_BYTES = 512  # of one key
ROW_BYTES = 16  # the tensor memory accelerator reads rows that are a multiple of it
MOST_PAGE_BYTES = 32 * 1024  # of one head's keys: the pages in flight must fit into shared memory


def check_supported(spec: Decoder, dtype: torch.dtype, kv_dtype: torch.dtype, block_size: int) -> None:
    """Raises ModelError or ConfigError, with one sentence, for what the GPU's kernels cannot do."""
    if not has_c_compiler():
        raise ConfigError("--device cuda needs a C compiler, by which Triton launches kernels: install gcc")
    head_dim, name = uniform_attention(spec).head_dim, str(dtype).removeprefix("torch.")
    if head_dim * dtype.itemsize > MOST_HEAD_BYTES:
        raise ModelError(
            f"this model's heads have {head_dim} dimensions; in {name} the GPU's kernels take at most "
            f"{MOST_HEAD_BYTES // dtype.itemsize}: use --device cpu"
        )
    if head_dim * kv_dtype.itemsize % ROW_BYTES:
        remedy = "--kv-cache-dtype auto" if kv_dtype != dtype else "--device cpu"
        raise ModelError(
            f"this model's heads have {head_dim} dimensions; with keys and values in "
            f"{str(kv_dtype).removeprefix('torch.')} the GPU's kernels take multiples of "
            f"{ROW_BYTES // kv_dtype.itemsize}: use {remedy}"
        )
    row_bytes = box_width(head_dim) * dtype.itemsize
    most = min(BLOCK_SIZES[-1], MOST_PAGE_BYTES // row_bytes)
    if block_size not in BLOCK_SIZES or block_size > most:
        raise ConfigError(
            f"--block-size {block_size}: with heads of {head_dim} dimensions in {name} the GPU's kernels take "
            f"{BLOCK_SIZES[0]} to {most}"
        )
    for layer in spec.layers:
        if layer.attention.window is not None and layer.attention.window < 1:
            raise ModelError(f"a sliding window of {layer.attention.window} tokens; at least 1 is needed")


def has_c_compiler() -> bool:
    """Triton needs one to make the launchers of kernels, unless its cache has them."""
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


@contextmanager
def memory_for(what: str, remedy: str) -> Iterator[None]:
    """Turns running out of the GPU's memory into a ConfigError that says for what, and how to need less."""
    try:
        yield
    except RuntimeError as error:  # torch has two kinds of its own, and its libraries have theirs
        text = str(error)
        if "out of memory" not in text and "ALLOC_FAILED" not in text:
            raise
        wanted = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        free, total = torch.cuda.mem_get_info()
        raise ConfigError(
            f"out of GPU memory for {what}: {wanted[1] if wanted else 'more'} was asked for when {free / GIB:.2f} of "
            f"{total / GIB:.1f} GiB were free: {remedy}"
        ) from error
