"""Says when a kernel is compiled while requests wait for it: one that warm-up should have made."""

import logging
import time
from typing import Protocol

log = logging.getLogger(__name__)


class Kernel(Protocol):
    """What Triton's hooks say of a kernel."""

    @property
    def name(self) -> str: ...


class LateCompiles:
    """What Triton tells of each compilation, as one warning for each kernel and kind of arguments.

    A kernel that the cache of an earlier start has is told of too: it takes only milliseconds, and should not happen.
    """

    def __init__(self) -> None:
        self._began_s = 0.0
        self._known: set[tuple[str, str]] = set()

    def begin(self, **others: object) -> None:
        """`triton.knobs.runtime.jit_cache_hook`: before a compilation; what it returns lets it go on."""
        self._began_s = time.monotonic()

    def end(self, *, key: str, fn: Kernel, **others: object) -> None:
        """`triton.knobs.runtime.jit_post_compile_hook`: after it.

        key: the arguments' types, with what they were specialized for, and behind them the options in braces.
        """
        took_s = time.monotonic() - self._began_s
        if (fn.name, key) not in self._known:
            self._known.add((fn.name, key))
            arguments = key.partition("{")[0]
            log.warning(
                "compiled while serving",
                extra={"kernel": fn.name, "arguments": arguments, "took_ms": round(1000 * took_s)},
            )
