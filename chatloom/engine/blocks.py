"""Which blocks of the key/value cache are whose: counts of readers, and names under which blocks are found again.

A block holds `block_size` consecutive tokens of a sequence. Its name is a digest of all tokens up to its end, so a name
stands for one content whoever asks (prefix reuse: Kwon et al. 2023, PagedAttention, section 4.3; Zheng et al. 2024). A
block that is not full may be named too; it is copied, not shared, because its owner goes on writing behind the named
tokens. A block that nobody reads any more keeps its names until its place is needed: the least recently used first.

Low numbers are taken first, and a remembered block among them makes room by moving up, so that the blocks in use lie
close together: the cache reads a stretch of blocks faster than scattered ones. Plain Python, no torch.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush


def name_of(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a block of `tokens` behind the block named `parent`, or behind the root of a sequence."""
    return hashlib.blake2b(array("q", tokens).tobytes(), digest_size=16, key=parent).digest()


@dataclass(frozen=True, slots=True)
class Match:
    """The remembered beginning of a sequence."""

    blocks: list[int]  # whole ones, to be shared
    name: bytes  # of the last of them, or the root
    num_tokens: int  # of all that was found
    copied: int | None  # a block whose first tokens, behind those of `blocks`, are to be copied


class Blocks:
    """The blocks 0 to num_blocks - 1: free, held by some readers, or unread and remembered."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """All blocks are free at first."""
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"{num_blocks} blocks of {block_size} tokens; there must be at least 1 of at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.moves: dict[int, int] = {}  # to: from. To be copied, all at once, before the next step; then cleared
        self.high_water = 0  # no block of this number or above was ever taken
        self._free = list(range(num_blocks))  # a heap
        self._readers: dict[int, int] = {}
        self._unread: OrderedDict[int, int] = OrderedDict()  # age: block remembered, least recently used first
        self._ages: dict[int, int] = {}
        self._num_dropped = 0
        self._low_unread: list[int] = []  # a heap; some of them are not unread any more
        self._by_name: dict[bytes, int] = {}
        self._names: dict[int, list[tuple[bytes, bytes, int]]] = {}  # block: (name, parent, number of tokens)
        self._lengths: dict[bytes, dict[int, int]] = {}  # parent: numbers of tokens of the blocks named behind it

    @property
    def num_available(self) -> int:
        """Blocks that `take` could give."""
        return len(self._free) + len(self._unread)

    @property
    def num_held(self) -> int:
        """Blocks that somebody reads."""
        return len(self._readers)

    def take(self) -> int | None:
        """A block of one's own, with one reader; None when all are held."""
        # Memory of the past is kept as long as it is no more than the present, or than a quarter of everything.
        most = max(len(self._readers), self.num_blocks // 4)
        if self._unread and (not self._free or len(self._unread) > most):
            _, forgotten = self._unread.popitem(last=False)
            del self._ages[forgotten]
            self._unname(forgotten)
            heappush(self._free, forgotten)
        if not self._free:
            return None
        block = self._moved_up(heappop(self._free))
        self._readers[block] = 1
        return block

    def hold(self, block: int) -> None:
        """One more reader of a block that is held or remembered."""
        self._readers[block] = self._readers.get(block, 0) + 1
        if block in self._ages:
            del self._unread[self._ages.pop(block)]

    def drop(self, block: int) -> None:
        """One reader less."""
        self._readers[block] -= 1
        if self._readers[block]:
            return
        del self._readers[block]
        if block in self._names:
            self._num_dropped += 1
            self._ages[block] = self._num_dropped
            self._unread[self._num_dropped] = block
            heappush(self._low_unread, block)
        else:
            heappush(self._free, block)

    def name(self, block: int, parent: bytes, tokens: Sequence[int]) -> bytes:
        """Let the first `len(tokens)` tokens of a held block be found behind `parent`; returns the name."""
        name = name_of(parent, tokens)
        if name not in self._by_name:
            assert block in self._readers
            self._by_name[name] = block
            self._names.setdefault(block, []).append((name, parent, len(tokens)))
            lengths = self._lengths.setdefault(parent, {})
            lengths[len(tokens)] = lengths.get(len(tokens), 0) + 1
        return name

    def match(self, root: bytes, tokens: Sequence[int]) -> Match:
        """The longest remembered beginning of `tokens`, up to the last but one: the last must be computed."""
        size, blocks, parent = self.block_size, list[int](), root
        usable = len(tokens) - 1
        while (len(blocks) + 1) * size <= usable:
            name = name_of(parent, tokens[len(blocks) * size : (len(blocks) + 1) * size])
            found = self._by_name.get(name)
            if found is None:
                break
            blocks.append(found)
            parent = name
        start = len(blocks) * size
        for length in sorted(self._lengths.get(parent, ()), reverse=True):
            if start + length <= len(tokens):
                found = self._by_name.get(name_of(parent, tokens[start : start + length]))
                if found is not None:
                    num_tokens = min(start + length, usable)
                    return Match(blocks, parent, num_tokens, found if num_tokens > start else None)
        return Match(blocks, parent, start, None)

    def forget(self) -> None:
        """Drop all names: nothing computed so far is found again. Readers keep their blocks."""
        self._free += self._unread.values()
        heapify(self._free)
        for remembered in (self._unread, self._ages, self._low_unread, self._by_name, self._names, self._lengths):
            remembered.clear()

    def check(self) -> None:
        """Assert that every block is in one state, and that every name leads to a block that bears it."""
        states = [*self._free, *self._readers, *self._ages]
        assert sorted(states) == list(range(self.num_blocks)), "a block was lost or is in two states"
        assert {block: age for age, block in self._unread.items()} == self._ages
        assert all(count > 0 for count in self._readers.values())
        assert not set(self._free) & set(self._names), "a free block has a name"
        borne = {name: block for block, names in self._names.items() for name, _, _ in names}
        assert borne == self._by_name
        assert sum(sum(lengths.values()) for lengths in self._lengths.values()) == len(borne)

    def _moved_up(self, block: int) -> int:
        """Of a free block and a remembered one below it, among those in use, the lower, free now."""
        self.high_water = max(self.high_water, block + 1)
        in_use = len(self._readers) * 5 // 4 + 8
        if block <= in_use:
            return block
        while self._low_unread and self._low_unread[0] not in self._ages:
            heappop(self._low_unread)
        if not self._low_unread or self._low_unread[0] > in_use:
            return block
        low = heappop(self._low_unread)
        self.moves[block] = self.moves.get(low, low)
        names = self._names[block] = self._names.pop(low)
        self._by_name.update((name, block) for name, _, _ in names)
        self._ages[block] = age = self._ages.pop(low)
        self._unread[age] = block
        heappush(self._low_unread, block)
        return low

    def _unname(self, block: int) -> None:
        for name, parent, length in self._names.pop(block):
            del self._by_name[name]
            lengths = self._lengths[parent]
            lengths[length] -= 1
            if not lengths[length]:
                del lengths[length]
                if not lengths:
                    del self._lengths[parent]
