"""Progress bars, where tqdm is installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """What of tqdm is used."""

    def update(self, n: int = 1) -> object: ...


class _Unseen:
    def update(self, n: int = 1) -> None:
        """Nothing is shown."""


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Progress]:
    """A bar on standard error; none for nothing to do, and none where tqdm is missing."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        total = 0
    if not total:
        yield _Unseen()
        return
    with tqdm(total=total, initial=done, desc=what, dynamic_ncols=True) as bar:
        yield bar
