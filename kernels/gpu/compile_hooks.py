"""Triton's compilations: who is told of them, and how many run at once."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import triton
from triton.compiler import CompiledKernel


def on_compile(begin: Callable[..., None] | None, end: Callable[..., None] | None) -> None:
    """Have `begin` and `end` called, with keyword arguments, around each compilation of this process; None: nobody."""
    triton.knobs.runtime.jit_cache_hook = begin
    triton.knobs.runtime.jit_post_compile_hook = end


@contextmanager
def compiling_only() -> Iterator[None]:
    """Kernels that are called are not run but compiled, where they are not yet, all at once; done at the end.

    Those that are compiled do not run either: what another kernel should have written for them is left as it was.
    Torch's own kernels do run; nobody may use what ours should have written as an index of one.
    """
    with ThreadPoolExecutor(os.cpu_count(), "compile") as pool, _CompileOnly(pool), _nothing_runs():
        yield


_launcher = CompiledKernel.run  # a property, which makes the launcher, by a C compiler, and brings it to the device


@contextmanager
def _nothing_runs() -> Iterator[None]:
    CompiledKernel.run = property(lambda kernel: lambda *args: None)
    try:
        yield
    finally:
        CompiledKernel.run = _launcher


class _CompileOnly(triton.AsyncCompileMode):  # type: ignore[misc]  # Triton has no types
    def submit(self, key, compile_fn, finalize_fn):
        def compile_and_load():
            kernel = compile_fn()
            _launcher.fget(kernel)
            return kernel

        super().submit(key, compile_and_load, finalize_fn)
        return None  # Triton runs no kernel that it has not got
