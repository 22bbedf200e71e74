"""The pool of KV blocks: who holds which, and which full blocks can be shared because their content is known.

A block is in one of three states:

    held      referenced by one request or more
    cached    referenced by none, but its content may be wanted again: evicted least recently used first
    free      referenced by none, content unknown
"""

from collections import OrderedDict
from collections.abc import Sequence


class OutOfBlocks(Exception):
    """More blocks were asked for than are free or cached; the caller checks `num_available` first."""


class BlockPool:
    """Counts references and remembers content hashes. num_held + num_available == num_blocks, always."""

    def __init__(self, num_blocks: int, is_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.is_caching = is_caching
        # The lowest free block is taken first, so that a lone request's blocks lie side by side.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that `take` can hand out."""
        return len(self._free) + len(self._cached)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_available

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known beginning of a hash chain. Takes no references."""
        blocks: list[int] = []
        for each in hashes:
            block = self._block_of.get(each)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_cached(self, blocks: Sequence[int]) -> int:
        """How many of these are held by nobody, so that holding them uses up available ones."""
        return sum(1 for block in blocks if self._references[block] == 0)

    def share(self, blocks: Sequence[int]) -> None:
        """Hold blocks that `find` found."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1

    def take(self, count: int) -> list[int]:
        """Hold `count` blocks of unknown content, evicting the longest unused cached ones if need be."""
        if count > self.num_available:
            raise OutOfBlocks(f"{count} blocks wanted; {self.num_available} of {self.num_blocks} are there")
        num_free = min(count, len(self._free))
        blocks = self._free[len(self._free) - num_free :][::-1]
        del self._free[len(self._free) - num_free :]
        blocks += [self._evict() for _ in range(count - num_free)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def publish(self, block: int, content: bytes) -> None:
        """Make a held block findable. The first block with some content stays the one that is found."""
        if self.is_caching and self._hash_of[block] is None and content not in self._block_of:
            self._hash_of[block] = content
            self._block_of[content] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one reference to each. The tail of a chain is evicted before its beginning."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            assert self._references[block] == 0, f"block {block} was released more often than held"
            if self._hash_of[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    def check(self, holders: Sequence[Sequence[int]]) -> None:
        """Raise AssertionError unless references are those of `holders` and every block is somewhere."""
        wanted = [0] * self.num_blocks
        for blocks in holders:
            for block in blocks:
                wanted[block] += 1
        assert wanted == self._references, "references differ from the block tables"
        idle = set(self._free) | set(self._cached)
        assert len(idle) == self.num_available, "a block is both free and cached"
        assert idle == {block for block, count in enumerate(wanted) if count == 0}, "an idle block is lost"
        assert all(self._hash_of[block] == content for content, block in self._block_of.items())

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        content = self._hash_of[block]
        assert content is not None
        del self._block_of[content]
        self._hash_of[block] = None
        return block
