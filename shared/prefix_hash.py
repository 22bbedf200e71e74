"""The hash chain over full KV blocks: two blocks with one hash hold the same keys and values.

hash(block) = BLAKE2b-128(hash(parent) || token ids), where the first parent is the hash of the salt. Equal hashes
therefore mean equal tokens from the very first position on, within one tenant.
"""

from hashlib import blake2b

HASH_BYTES = 16
INT32_BYTES = 4


def root_hash(salt: bytes) -> bytes:
    """The parent of first blocks."""
    return blake2b(salt, digest_size=HASH_BYTES, person=b"octavo-prefix").digest()


def next_hash(parent: bytes, token_ids: bytes) -> bytes:
    """The hash of one full block of packed token ids."""
    return blake2b(parent + token_ids, digest_size=HASH_BYTES).digest()


def hash_blocks(token_ids: bytes, block_size: int, salt: bytes) -> bytes:
    """The hashes, 16 bytes each, of all full blocks of packed token ids."""
    parent, hashes = root_hash(salt), []
    step = block_size * INT32_BYTES
    for start in range(0, len(token_ids) - step + 1, step):
        parent = next_hash(parent, token_ids[start : start + step])
        hashes.append(parent)
    return b"".join(hashes)
