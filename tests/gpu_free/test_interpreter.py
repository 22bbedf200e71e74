"""The Triton kernels compute what their references say, in Triton's interpreter: on a machine without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

triton = pytest.importorskip("triton", reason="needs Triton: pip install -e '.[test]' on Linux x86-64")

LIMIT_S = 1200  # a minute, on a core of its own
is_broken = triton.__version__.startswith("3.6.") and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0"


@pytest.mark.skipif(is_broken, reason="the interpreter of Triton 3.6 needs numpy < 2.4")
def test_kernels_equal_their_references_in_the_interpreter() -> None:
    """In a process of its own: Triton decides when it is imported, and a wild address ends the process."""
    file = Path(__file__).with_name("interpreted.py")
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
