"""The cache of continuous batching: keys and values in blocks, rows of any length, prompts beside single tokens.

A forward pass gets the tokens of all rows behind one another, (1, N), and `begin` says whose they are. So nothing is
padded but in the attention of prompts, and a row may bring one token or a thousand.

Decoding reads the blocks where they lie. The query of a row is handed to each of its blocks, so the scores of all
blocks are one batched product whatever row they belong to; the scores, which are small, are brought into rows for the
softmax and back; and the blocks' shares of the values are added up for each row. On a CPU that is as fast as the
product over a rectangle of rows, and nothing beyond a row's last block is read (blocks: Kwon et al. 2023,
PagedAttention; adding up shares of a row: Dao et al. 2023, Flash-Decoding). Which blocks are whose is not decided here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from chatloom.nn.cache import PLAIN, Mask, Rule

# A stretch of blocks is read as it lies if it has up to so many times the blocks that are needed; else they are copied.
STRETCH = 1.5
# Up to so many blocks in a rectangle of rows are copied: where everything is small, fewer operations count for more.
_FEW = 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of one row: its blocks, how many tokens it has in them, and how many come now."""

    blocks: Sequence[int]
    start: int
    count: int


class Paged:
    """Keys and values of blocks of `block_size` tokens: (L, blocks, G, block_size, D)."""

    def __init__(
        self,
        num_layers: int,
        num_key_value_heads: int,
        head_width: int,
        *,
        block_size: int = 32,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        shape = (num_layers, 0, num_key_value_heads, block_size, head_width)  # room is made as it is needed
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.block_size = block_size
        self._positions = torch.zeros(1, 0, dtype=torch.int64)
        self._slots = self._positions
        self._ones: _Ones | None = None
        self._prompts: list[_Prompts] = []

    @property
    def num_blocks(self) -> int:
        """Blocks there is room for."""
        return self.keys.shape[1]

    def make_room(self, num_blocks: int, *, most: int | None = None) -> None:
        """Have room for at least so many blocks, and for twice as many as there were, but for no more than `most`."""
        if num_blocks > self.num_blocks:
            wanted = max(num_blocks, 2 * self.num_blocks)
            missing = (wanted if most is None else max(num_blocks, min(wanted, most))) - self.num_blocks
            # Both or none: where memory ends, what there was stays whole.
            self.keys, self.values = [F.pad(kept, (0, 0) * 3 + (0, missing)) for kept in (self.keys, self.values)]

    def clear(self) -> None:
        """Overwrite everything with zeros: a number that is not finite would spoil whoever gets its block."""
        self.keys.zero_()
        self.values.zero_()

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks, (from, to), all at once: what one pair overwrites another may still read."""
        origin, target = torch.tensor(pairs, device=self.keys.device).unbind(1)
        self.keys[:, target] = self.keys[:, origin]
        self.values[:, target] = self.values[:, origin]

    def put(self, rows: Sequence[Sequence[int]], keys: Tensor, values: Tensor) -> None:
        """Put keys and values (L, G, P, D) of virtual tokens at the beginning of rows, given by their blocks."""
        size = self.block_size
        for start in range(0, keys.shape[2], size):
            blocks = [row[start // size] for row in rows]
            end = min(start + size, keys.shape[2])
            for kept, given in ((self.keys, keys), (self.values, values)):
                kept[:, blocks, :, : end - start] = given[:, None, :, start:end].to(kept.dtype)

    def begin(self, chunks: Sequence[Chunk]) -> None:
        """Announce the rows of the next forward pass, in the order of their tokens; those of one token come first."""
        size, device = self.block_size, self.keys.device
        num_ones = next((place for place, chunk in enumerate(chunks) if chunk.count > 1), len(chunks))
        positions = [chunk.start for chunk in chunks[:num_ones]]
        blocks = [chunk.blocks[chunk.start // size] for chunk in chunks[:num_ones]]
        for chunk in chunks[num_ones:]:
            assert chunk.count > 1
            own = range(chunk.start, chunk.start + chunk.count)
            positions += own
            blocks += [chunk.blocks[position // size] for position in own]
        where = torch.tensor([positions, blocks], device=device)
        self._positions = where[:1]
        groups = torch.arange(self.keys.shape[2], device=device)
        # Where each token's keys go, in the blocks seen as (blocks * G * block_size, D).
        self._slots = ((where[1][:, None] * len(groups) + groups) * size + where[0][:, None] % size).flatten()
        self._ones = _Ones(chunks[:num_ones], where[0, :num_ones], size, len(groups)) if num_ones else None
        self._prompts = _grouped(chunks, num_ones, size, device)

    def positions(self, tokens: Tensor) -> Tensor:
        """Where each token stands in its row: (1, N)."""
        assert tokens.shape == self._positions.shape, f"{tokens.shape} tokens for {self._positions.shape} announced"
        return self._positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, rule: Rule = PLAIN) -> Tensor:
        """Store this step's keys and values, then let each token see its own row up to itself."""
        self.write(layer, key, value)
        return self._attended(query, key, value, self.keys[layer], self.values[layer], rule)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the announced tokens' keys and values (1, G, N, D); returns them as they are kept."""
        for kept, given in ((self.keys[layer], key), (self.values[layer], value)):
            flat = given[0].transpose(0, 1).reshape(-1, given.shape[3])  # (N * G, D)
            kept.view(-1, given.shape[3]).index_copy_(0, self._slots, flat.to(kept.dtype))
        return key, value

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of some blocks (n,), each (n, G, size, D), until the next ones are read."""
        return self.keys[layer].index_select(0, blocks), self.values[layer].index_select(0, blocks)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, rule: Rule) -> Tensor:
        """What the announced rows see, (1, H, N, D): of their own keys (1, G, N, D), or of blocks (n, G, size, D)."""
        queries = query[0].transpose(0, 1)  # (N, H, D)
        if self._ones is not None and not self._prompts:
            return self._ones.attend(queries, keys, values, rule).to(query.dtype).transpose(0, 1)[None]
        seen = torch.empty(queries.shape, dtype=query.dtype, device=query.device)
        if self._ones is not None:
            count = self._ones.count
            seen[:count] = self._ones.attend(queries[:count], keys, values, rule).to(query.dtype)
        for prompts in self._prompts:
            own = key[0].transpose(0, 1), value[0].transpose(0, 1)
            seen[prompts.tokens] = prompts.attend(queries, own, keys, values, rule).to(query.dtype)
        return seen.transpose(0, 1)[None]


class _Ones:
    """The rows that bring one token."""

    def __init__(self, chunks: Sequence[Chunk], positions: Tensor, size: int, groups: int) -> None:
        device = positions.device
        counts = [chunk.start // size + 1 for chunk in chunks]  # blocks of each row
        self.count, self.most = len(chunks), max(counts)
        slots = torch.arange(self.most * size, device=device)
        seen = slots <= positions[:, None]
        self.mask = Mask(seen[:, None, None], (positions[:, None], slots[None]))  # (B, 1, 1, S)
        self._orders: dict[int, tuple[Tensor, Tensor]] = {}
        self.table: Tensor | None = None
        if self.count * self.most <= _FEW:
            padding = [[chunk.blocks[0]] * (self.most - count) for chunk, count in zip(chunks, counts)]
            rows = [[*chunk.blocks[:count], *rest] for chunk, count, rest in zip(chunks, counts, padding)]
            table = torch.tensor(rows, device=device)[:, None]  # (B, 1, most), of blocks; a group's part of each:
            self.table = (table * groups + torch.arange(groups, device=device)[:, None]).flatten()  # (B * G * most,)
            return
        blocks = [block for chunk, count in zip(chunks, counts) for block in chunk.blocks[:count]]
        numbers = torch.tensor(counts, device=device)
        self.row = torch.repeat_interleave(torch.arange(self.count, device=device), numbers)  # (E,)
        self.starts = numbers.cumsum(0) - numbers
        self.place = torch.arange(len(blocks), device=device) - self.starts[self.row]
        low, high = min(blocks), max(blocks) + 1
        self.chosen: Tensor | slice = torch.tensor(blocks, device=device)
        if high - low <= STRETCH * len(blocks) and len(set(blocks)) == len(blocks):
            self.where = self.chosen - low  # among the blocks that are read
            self.chosen, self.read = slice(low, high), high - low
        else:
            self.where, self.read = torch.arange(len(blocks), device=device), len(blocks)
        self.row_of = torch.zeros(self.read, dtype=torch.int64, device=device).index_copy_(0, self.where, self.row)

    def orders(self, heads: int) -> tuple[Tensor, Tensor]:
        """From scores by block to scores by row, (B * H * most,), and back, (read * H,)."""
        if heads not in self._orders:
            device = self.where.device
            head = torch.arange(heads, device=device)
            table = self.where[self.starts][:, None].repeat(1, self.most)  # beyond a row's end: its own first block
            table[self.row, self.place] = self.where
            to_rows = (table[:, None] * heads + head[:, None]).flatten()
            back = torch.zeros(self.read, heads, dtype=torch.int64, device=device)
            back[self.where] = (self.row[:, None] * heads + head) * self.most + self.place[:, None]
            self._orders[heads] = to_rows, back.flatten()
        return self._orders[heads]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, rule: Rule) -> Tensor:
        """Attention (B, H, D) of one query a row, (B, H, D)."""
        heads, width = query.shape[1:]
        groups, size = keys.shape[1:3]
        query = (query * (width**-0.5 if rule.scale is None else rule.scale)).to(keys.dtype)
        if self.table is not None:
            keys, values = (
                kept.view(-1, size, width).index_select(0, self.table).view(self.count * groups, -1, width)
                for kept in (keys, values)
            )
            scores = torch.bmm(query.reshape(-1, heads // groups, width), keys.transpose(1, 2))
            scores = self._softmax(scores.view(self.count, heads, 1, -1), query, rule)
            return torch.bmm(scores.view(len(keys), heads // groups, -1), values).view(self.count, heads, width)
        if isinstance(self.chosen, slice):
            keys, values = keys[self.chosen], values[self.chosen]
        else:
            keys, values = keys.index_select(0, self.chosen), values.index_select(0, self.chosen)
        to_rows, back = self.orders(heads)
        shared = query.index_select(0, self.row_of).view(-1, heads // groups, width)
        scores = torch.bmm(shared, keys.view(-1, size, width).transpose(1, 2))
        scores = scores.view(-1, size).index_select(0, to_rows).view(self.count, heads, 1, -1)
        scores = self._softmax(scores, query, rule)
        scores = scores.view(-1, size).index_select(0, back).view(-1, heads // groups, size)
        shares = torch.bmm(scores, values.view(-1, size, width)).view(self.read, heads * width)
        seen = F.embedding_bag(self.where, shares, self.starts, mode="sum")
        return seen.view(self.count, heads, width)

    def _softmax(self, scores: Tensor, query: Tensor, rule: Rule) -> Tensor:
        """Of the scores (B, H, 1, S) that each row may see."""
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        return (scores + self.mask.floor(query[:, :, None], rule)).softmax(-1).to(query.dtype)


class _Prompts:
    """Rows that bring several tokens, padded to the longest of them."""

    def __init__(self, chunks: Sequence[Chunk], firsts: Sequence[int], size: int, device: torch.device) -> None:
        """`firsts` says where each row's tokens begin in the forward pass."""
        counts = torch.tensor([chunk.count for chunk in chunks], device=device)
        time = torch.arange(int(counts.max()), device=device)
        self.valid = time < counts[:, None]  # (P, T)
        offsets = torch.minimum(time, counts[:, None] - 1)
        self.index = torch.tensor(firsts, device=device)[:, None] + offsets
        self.tokens = self.index[self.valid]
        self.table: Tensor | None = None
        self.mask = Mask(None)
        if any(chunk.start for chunk in chunks):
            most = max(-(-(chunk.start + chunk.count) // size) for chunk in chunks)
            rows = [[*chunk.blocks[:most], *[chunk.blocks[0]] * (most - len(chunk.blocks))] for chunk in chunks]
            self.table = torch.tensor(rows, device=device)
            starts = torch.tensor([chunk.start for chunk in chunks], device=device)
            slots = torch.arange(most * size, device=device)
            places = starts[:, None] + offsets  # (P, T)
            self.mask = Mask((slots <= places[:, :, None])[:, None], (places, slots[None]))  # (P, 1, T, S)

    def attend(self, queries: Tensor, own: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, rule: Rule) -> Tensor:
        """Attention of the real tokens among them, in their order: (tokens, H, D)."""
        query = queries[self.index].transpose(1, 2)  # (P, H, T, D)
        if self.table is None:
            key, value = (some[self.index].transpose(1, 2) for some in own)
        else:
            key, value = (
                kept[self.table].transpose(1, 2).flatten(2, 3).to(query.dtype)  # (P, G, most * size, D)
                for kept in (keys, values)
            )
        return self.mask.attend(query, key, value, rule).transpose(1, 2)[self.valid]


def _grouped(chunks: Sequence[Chunk], num_ones: int, size: int, device: torch.device) -> list[_Prompts]:
    """Prompts that are alike in length, twice as long at most, are padded together; those with a past on their own."""
    groups: dict[tuple[int, int], tuple[list[Chunk], list[int]]] = {}
    first = num_ones
    for chunk in chunks[num_ones:]:
        alike = chunk.count.bit_length(), chunk.start.bit_length()
        members, firsts = groups.setdefault(alike, ([], []))
        members.append(chunk)
        firsts.append(first)
        first += chunk.count
    return [_Prompts(members, firsts, size, device) for members, firsts in groups.values()]
