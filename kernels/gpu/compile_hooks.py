"""Triton's compilations: who is told of them, and how many run at once."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import triton


def on_compile(begin: Callable[..., None], end: Callable[..., None]) -> None:
    """Have `begin` and `end` called, with keyword arguments, around each compilation of this process."""
    triton.knobs.runtime.jit_cache_hook = begin
    triton.knobs.runtime.jit_post_compile_hook = end


@contextmanager
def compiling_only() -> Iterator[None]:
    """Kernels that are called and not yet compiled are not run but compiled, all at once; done at the end.

    What they should have written is left as it was, so nobody may use it as an index.
    """
    with ThreadPoolExecutor(os.cpu_count(), "compile") as pool, _CompileOnly(pool):
        yield


class _CompileOnly(triton.AsyncCompileMode):  # type: ignore[misc]  # Triton has no types
    def submit(self, key, compile_fn, finalize_fn):
        def compile_and_load():
            kernel = compile_fn()
            kernel.run  # noqa: B018  # makes its launcher, by a C compiler, and brings it to the device
            return kernel

        super().submit(key, compile_and_load, finalize_fn)
        return None  # Triton runs no kernel that it has not got
