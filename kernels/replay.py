"""A computation that is nothing but loops: recorded once, then done by one call for any number of rows.

Between two loops of a small step Python, torch's dispatch and the start of threads take longer than many a loop; here
one loop of loops.py does a whole list of jobs. That is sound because the words of a job are addresses, which recorded
memory keeps, and sizes, of which only word 1 depends on the number of rows.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.kernels.native import BYTES_WORTH_A_THREAD, Job, barrier_address, find_loop, recorded_jobs

_EMPTY = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
_WORDS_PER_JOB = 32  # four cache lines, so that the threads' counters of two jobs never share one


class Replay:
    """Recorded jobs; what they read and write lies at the same addresses each time."""

    def __init__(self, jobs: list[Job], max_rows: int, memory: list[Tensor]) -> None:
        loop = find_loop("replay", torch.float32, torch.device("cpu"))
        assert loop is not None, "jobs of loops without any loop"
        self._loop, self._memory = loop, memory
        self._functions = torch.tensor([address for address, _ in jobs])
        self._jobs = torch.zeros(len(jobs), _WORDS_PER_JOB, dtype=torch.int64)
        for row, (_, words) in zip(self._jobs, jobs, strict=True):
            row[: len(words)] = torch.tensor(words)
        self._sizes_per_row = self._jobs[:, 1] // max_rows
        assert (self._sizes_per_row * max_rows).equal(self._jobs[:, 1]), "a job's size is no multiple of the rows"

    def run(self, rows: int) -> None:
        """Do all jobs, on the first `rows` rows of the inputs that were recorded."""
        self._jobs[:, 0] = 0
        torch.mul(self._sizes_per_row, rows, out=self._jobs[:, 1])
        self._loop.run(
            BYTES_WORTH_A_THREAD + 1, len(self._jobs), self._jobs.data_ptr(), 8 * _WORDS_PER_JOB,
            self._functions.data_ptr(), barrier_address(),
        )  # fmt: skip


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Sees each operation of torch while it is on: lets views pass, and gives out the memory of new tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._memory: dict[object, Tensor] = {}
        self._part = self._count = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Without this torch imports its compiler at the first operation, which takes seconds."""
        return False

    @property
    def memory(self) -> list[Tensor]:
        return list(self._memory.values())

    def begin_part(self) -> None:
        """What is made in a part may be read there and in the next part; the one after that may write over it."""
        self._part, self._count = self._part + 1, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in _EMPTY:
            made: Tensor = func(*args, **(kwargs or {}))
            self._count += 1
            return self._memory.setdefault((self._part % 2, self._count, made.dtype, made.shape, made.stride()), made)
        if not func.is_view:
            raise _NotALoopError(str(func))
        views = func(*args, **(kwargs or {}))
        for view in views if isinstance(views, list | tuple) else [views]:
            if view.untyped_storage().data_ptr() != args[0].untyped_storage().data_ptr():
                raise _NotALoopError(f"{func} copies")
        return views


class _NotALoopError(Exception):
    pass


@torch.inference_mode()
def record(compute: Callable[[Recorder], Tensor], max_rows: int) -> tuple[Replay, Tensor] | None:
    """Record what `compute` would do with `max_rows` rows, without doing it.

    Args:
        compute: tells the recorder where a part begins; its inputs must stay at their addresses.

    Returns:
        The replay and the tensor that compute gave, which each run fills anew; None if something is not a loop.
    """
    recorder = Recorder()
    try:
        with recorded_jobs() as jobs, recorder:
            result = compute(recorder)
    except _NotALoopError:
        return None
    return Replay(jobs, max_rows, recorder.memory), result
