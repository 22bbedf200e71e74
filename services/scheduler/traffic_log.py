"""A line in the log every ten seconds in which there was something to do."""

import logging

from octavo.shared.messages import Stats

log = logging.getLogger(__name__)

EVERY_S = 10.0


class TrafficLog:
    """Compares counters with those of ten seconds ago."""

    def __init__(self) -> None:
        self._before: Stats | None = None

    def note(self, stats: Stats) -> None:
        """Take in counters, the newer the later; one in ten seconds is logged if tokens were computed or wait."""
        before = self._before
        if before is None:
            self._before = stats
            return
        seconds = stats.made_at_s - before.made_at_s
        if seconds < EVERY_S:
            return
        self._before = stats
        prompt_tokens = stats.prompt_tokens - before.prompt_tokens
        generation_tokens = stats.generation_tokens - before.generation_tokens
        if not (prompt_tokens or generation_tokens or stats.num_running or stats.num_waiting):
            return
        num_queries = stats.prefix_queries - before.prefix_queries
        fields = {
            "prompt_tokens_per_s": round(prompt_tokens / seconds, 1),
            "generation_tokens_per_s": round(generation_tokens / seconds, 1),
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "kv_cache_usage": f"{_share(stats.num_blocks_used, stats.num_blocks):.1%}",
            "prefix_cache_hits": f"{_share(stats.prefix_hits - before.prefix_hits, num_queries):.1%}",
        }
        log.info("traffic", extra=fields)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
