"""The token stream of `--device sim`: any client can compute what it must receive.

    state(ids) = crc32 of all token ids so far, as little-endian int32
    next token = the state spread over the vocabulary

Each token depends on every one before it, so a lost, repeated, swapped or misdelivered token, or a KV block
that holds something else than it should, changes all that follow.
"""

from collections.abc import Collection, Sequence
from zlib import crc32

from octavo.shared.messages import pack


def advance(state: int, token_ids: bytes) -> int:
    """The state after more packed token ids; the first state is 0."""
    return crc32(token_ids, state)


def next_token(state: int, vocab_size: int) -> int:
    """The token that follows in this state."""
    return ((state * 0x9E3779B1) & 0xFFFFFFFF) * vocab_size >> 32


def expected_tokens(
    prompt_ids: Sequence[int], max_tokens: int, vocab_size: int, stop_token_ids: Collection[int] = ()
) -> list[int]:
    """The completion of a prompt on the simulated executor, a stop token that ends it included."""
    state = advance(0, pack(prompt_ids))
    completion: list[int] = []
    while len(completion) < max_tokens:
        token = next_token(state, vocab_size)
        completion.append(token)
        if token in stop_token_ids:
            break
        state = advance(state, pack([token]))
    return completion
