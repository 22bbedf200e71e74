"""How a slot's sampling parameters lie on the device: a row of int32 a slot, floats as their bits.

A row of zeros is greedy, without penalties and without logprobs.
"""

import math
import struct

RATE = 0
"""log2(e) / temperature: a token whose logit is d below the highest weighs 2^(-rate * d). 0 is greedy."""
TOP_K = 1
TOP_P = 2
MIN_P = 3
"""As the largest d that it allows; inf: any."""
SEED = 4
"""Two columns, the low half first."""
COUNTS = 6
"""Two columns: the address of the slot's counts (see `octavo.kernels.sampling.penalise`); 0: no penalties."""
REPETITION = 8
FREQUENCY = 9
PRESENCE = 10
LOGPROBS = 11
"""0: none; else one more than the number of alternatives."""
HELD = 12
"""1: the step leaves the slot alone, as its logits are still to be edited."""
COLUMNS = 13

_ROW = struct.Struct("<fiffQQfffii")


def pack_state(
    temperature: float,
    top_k: int,
    top_p: float,
    max_distance: float,
    seed: int,
    counts_address: int,
    penalties: tuple[float, float, float],
    logprobs: int | None,
    is_held: bool = False,
) -> list[int]:
    """A slot's row. temperature: 0 is greedy; penalties: repetition, frequency, presence."""
    rate = math.log2(math.e) / temperature if temperature > 0 else 0.0
    top_k = min(top_k, 2**31 - 1)
    wanted = 0 if logprobs is None else logprobs + 1
    row = _ROW.pack(rate, top_k, top_p, max_distance, seed, counts_address, *penalties, wanted, is_held)
    return list(struct.unpack(f"<{COLUMNS}i", row))
