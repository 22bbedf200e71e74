"""An event loop in a thread of its own, for callers that do not await."""

import asyncio
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

END_S = 5.0

Result = TypeVar("Result")


class Background:
    """Runs coroutines for any thread, also one that has a running loop (a notebook)."""

    def __init__(self) -> None:
        runner = asyncio.Runner()
        self._loop = runner.get_loop()
        self._thread = threading.Thread(target=_turn, args=(runner,), name="octavo client", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._loop, self._thread)

    @property
    def is_current(self) -> bool:
        """Whether the caller is in its thread, and must not wait for it: the garbage collector may run there."""
        return self._thread is threading.current_thread()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Wait for what it returns; an exception that ends the wait cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what runs and end the thread; may be called again."""
        self._end()


def _turn(runner: asyncio.Runner) -> None:
    with runner:  # which cancels what is left at the end
        runner.get_loop().run_forever()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if loop.is_closed():
        return
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join(END_S)
