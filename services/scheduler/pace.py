"""How many prompt tokens a step may take beside requests that decode, so that their next tokens come in time."""

from octavo.shared.step_sizes import MIXED_ROWS, round_down

DEFAULT_MAX_STEP_S = {"cuda": 0.040}
"""By device: how long a step may take while requests decode, if the config does not say."""
LEAST_TOKENS = 256
"""A prompt goes on at least half so fast, however long a step takes."""
AT_FIRST = 1024
"""Tokens of the first such steps, before any has been timed."""
WORTH_TIMING = 128
"""Fewer prompt tokens say little of what one costs."""
SHORT_S = 0.002
"""A step that only decodes, and takes no longer than this, may be over before the next one is planned and sent."""
WEIGHT = 0.25
"""Of each timed step in the running means."""


class Pace:
    """Learns what a step costs: so much for those who decode, and so much more for each prompt token.

    If the first is wrong, the second makes up for it: what is learned from a step of n tokens is right for n tokens.

    Args:
        most_s: how long a step may take while requests decode; None: as long as it takes.
    """

    def __init__(self, most_s: float | None) -> None:
        self._most_s = most_s
        self._decoding_s = 0.0
        self._token_s = 0.0
        self._done_at = 0.0

    @property
    def has_short_steps(self) -> bool:
        """Whether steps that only decode are short, as far as is known."""
        return 0.0 < self._decoding_s < SHORT_S

    def most_chunk_tokens(self, num_decoding: int) -> int | None:
        """Prompt tokens for the next step, beside so many that decode; None: no limit."""
        if self._most_s is None or num_decoding == 0:
            return None
        wanted = AT_FIRST
        if self._token_s > 0:
            wanted = max(LEAST_TOKENS, int((self._most_s - self._decoding_s) / self._token_s))
        # A step of another size would be filled up with rows that are nobody's.
        tokens = round_down(num_decoding + wanted, MIXED_ROWS) - num_decoding
        return tokens if 2 * tokens > LEAST_TOKENS else wanted

    def settle(self, now: float, sent_at: float, num_decoding: int, num_chunk_tokens: int) -> None:
        """A step is done. It ran from when it was sent, or when the one before it was done."""
        seconds = now - max(sent_at, self._done_at)
        self._done_at = now
        if num_chunk_tokens == 0:
            self._decoding_s += WEIGHT * (seconds - self._decoding_s)
        elif num_decoding > 0 and num_chunk_tokens >= WORTH_TIMING:
            token_s = max(seconds - self._decoding_s, 0.1 * seconds) / num_chunk_tokens
            self._token_s += (WEIGHT if self._token_s else 1.0) * (token_s - self._token_s)
