"""What compiles kernels ahead of their use."""

import pytest

pytest.importorskip("triton", reason="needs Triton: pip install -e '.[test]' on Linux x86-64")

from triton.compiler import CompiledKernel

from octavo.kernels.gpu.compile_hooks import compiling_only


def test_kernels_that_are_compiled_do_not_run_while_others_are() -> None:
    """They would read what these should have written."""
    runs: list[int] = []
    kernel = object.__new__(CompiledKernel)
    kernel._run = runs.append
    kernel.run(1)
    with compiling_only():
        kernel.run(2)
    with pytest.raises(ZeroDivisionError), compiling_only():
        raise ZeroDivisionError
    kernel.run(3)
    assert runs == [1, 3]
