"""A kernel compiled while serving is one warning that names it."""

import logging
from types import SimpleNamespace

import pytest

from octavo.services.executor.gpu.late_compiles import LateCompiles

KEY = "[('*bf16', 'D'), ('i32', ''), ('constexpr', 64)]{'num_warps': 4}"


def compile_one(late: LateCompiles, name: str, key: str = KEY) -> None:
    """The calls that Triton 3.6 makes."""
    fn = SimpleNamespace(module="octavo.kernels.gpu.any", name=name, jit_function=None)
    common = {"repr": "…", "compile": {"signature": {}}, "is_manual_warmup": False, "already_compiled": False}
    assert late.begin(key=key, fn=fn, **common) is None  # anything true would forbid the compilation
    late.end(key=key, fn=fn, **common)


def test_each_kernel_and_kind_of_arguments_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    late = LateCompiles()
    with caplog.at_level(logging.WARNING):
        for name, key in (("_decode", KEY), ("_decode", KEY), ("_decode", KEY.replace("64", "32")), ("_best", KEY)):
            compile_one(late, name, key)

    told = [vars(record) for record in caplog.records]
    assert [(each["kernel"], each["arguments"][-4:-2]) for each in told] == [
        ("_decode", "64"),
        ("_decode", "32"),
        ("_best", "64"),
    ]
    assert all(each["levelname"] == "WARNING" and 0 <= each["took_ms"] < 1000 for each in told)
