"""Places for keys and values: blocks of rows, of which an utterance holds as many as it has filled.

Blocks that hold a shared prefix have several holders. Knows counts and numbers; knows no arrays.
"""

from __future__ import annotations

from collections.abc import Iterable

BLOCK_ROWS = 32


def blocks_for(rows: int) -> int:
    return -(-rows // BLOCK_ROWS)


class BlockPool:
    """Blocks 1 to `num_blocks`; block 0 is scratch, which nobody holds and nobody reads."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks, 0, -1))
        self._holders = [0] * (num_blocks + 1)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A block for one holder. There is always one: the pool is made for the worst case."""
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each."""
        for block in blocks:
            self._holders[block] += 1

    def drop(self, blocks: Iterable[int]) -> None:
        """One holder fewer; a block that nobody holds is free."""
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free.append(block)
