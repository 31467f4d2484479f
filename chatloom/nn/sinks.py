"""A window with attention sinks, so that a text may go on for ever (Xiao et al. 2023, StreamingLLM, section 3.2).

A token sees the window of tokens that ends with it, and the first few of its text: without those, softmax has nowhere
to put the attention that nothing deserves, and a window alone falls apart once they have left it. Positions are those
within what is kept, as the paper has them: a token behind a full cache stands at `sinks` + `window` - 1 for the sinks,
however far it is in the text. Nothing is computed anew, so what a token of the window has seen before is in it still.

Rotary scores depend on distances alone. So keys are kept turned by their place in the text, and it is the query that is
turned twice: by its own place for the window, and by its place in the cache for the sinks. Angles are computed in
fp64 from the place, not looked up, and never run out. To get queries and keys unturned, `positions` are all 0.

A layer with a trained window of its own, no wider than this one, keeps to that: it never had sinks. Blocks that neither
hold sinks nor reach into the window are not read; whose they are is not decided here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from chatloom.nn.cache import PLAIN, Rule
from chatloom.nn.paged import Chunk, Paged
from chatloom.nn.positions import Angles, Rotary, alibi_slopes, rotate
from chatloom.nn.quantised_cache import Quantised

# Queries of a prompt that are scored at a time: what they see is written out.
AT_ONCE = 256
_NOWHERE = 2**62  # the place of a slot that only fills a row


class Kept(NamedTuple):
    """How much of a text is kept: the first `sinks` tokens and the last `window`."""

    window: int
    sinks: int

    def first_block(self, place: int, size: int) -> int:
        """The first block of the window that ends at a place; those before hold sinks alone, or nothing needed."""
        return max(0, place - self.window + 1) // size

    def num_sink_blocks(self, size: int) -> int:
        """Blocks that are kept for the sinks in them."""
        return -(-self.sinks // size)

    def num_blocks(self, size: int) -> int:
        """The most blocks that a row has at a time, one that reads its prompt in pieces of a window."""
        return self.num_sink_blocks(size) + 2 * -(-self.window // size) + 2


class Sinks(Paged):
    """As `Paged`, of the tokens that `kept` says. `rotaries` turn the queries and keys of each layer."""

    def __init__(
        self,
        num_layers: int,
        num_key_value_heads: int,
        head_width: int,
        *,
        kept: Kept,
        rotaries: Sequence[Rotary | None],
        block_size: int = 32,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(num_layers, num_key_value_heads, head_width, block_size=block_size, dtype=dtype, device=device)
        self._kept, self._rotaries = kept, rotaries
        self._views: list[_View] = []
        self._turns: dict[Rotary, tuple[Angles, Angles]] = {}
        self._places = self._positions

    def begin(self, chunks: Sequence[Chunk]) -> None:
        """Announce the rows of the next forward pass, those of one token first."""
        size, device, kept = self.block_size, self.keys.device, self._kept
        places = [place for chunk in chunks for place in range(chunk.start, chunk.start + chunk.count)]
        blocks = [
            chunk.blocks[place // size] for chunk in chunks for place in range(chunk.start, chunk.start + chunk.count)
        ]
        where = torch.tensor([places, blocks], device=device)
        self._places = where[:1]
        self._positions = torch.zeros_like(self._places)
        groups = torch.arange(self.keys.shape[2], device=device)
        self._slots = ((where[1][:, None] * len(groups) + groups) * size + where[0][:, None] % size).flatten()
        self._turns = {}
        ones = [chunk for chunk in chunks if chunk.count == 1]
        self._views = [_View(0, ones, kept, size, device)] if ones else []
        first = len(ones)
        for chunk in chunks[len(ones) :]:
            for start in range(0, chunk.count, AT_ONCE):
                count = min(AT_ONCE, chunk.count - start)
                part = Chunk(chunk.blocks, chunk.start + start, count)
                self._views.append(_View(first + start, [part], kept, size, device))
            first += chunk.count

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, rule: Rule = PLAIN) -> Tensor:
        """Store this step's keys and values, then let each token see its window and the sinks."""
        far = query
        rotary = self._rotaries[layer]
        if rotary is not None:
            if rotary not in self._turns:
                last = self._kept.sinks + self._kept.window - 1
                self._turns[rotary] = rotary.turns(self._places), rotary.turns(self._places.clamp(max=last))
            near_turn, far_turn = self._turns[rotary]
            key, query, far = rotate(key, *near_turn), rotate(query, *near_turn), rotate(query, *far_turn)
        self.write(layer, key, value)
        seen = torch.empty_like(query[0])  # (H, N, D)
        for view in self._views:
            keys, values = self.read(layer, view.blocks)
            some = slice(view.first, view.first + view.count)
            seen[:, some] = view.attend(query[0, :, some], far[0, :, some], keys, values, rule)
        return seen[None]


class QuantisedSinks(Sinks, Quantised):
    """The same with keys and values in eight bits."""


class _View:
    """What rows of as many tokens each see: `first` and `count` are their tokens in the forward pass."""

    def __init__(self, first: int, chunks: Sequence[Chunk], kept: Kept, size: int, device: torch.device) -> None:
        self.first, self.rows = first, len(chunks)
        self.count = sum(chunk.count for chunk in chunks)
        self._kept = kept
        chosen = []
        for chunk in chunks:
            last = (chunk.start + chunk.count - 1) // size
            behind = range(kept.first_block(chunk.start, size), last + 1)
            chosen.append([*range(min(kept.num_sink_blocks(size), behind.start)), *behind])
        most = max(map(len, chosen))
        tables = [
            [chunk.blocks[place] for place in own] + [chunk.blocks[own[0]]] * (most - len(own))
            for chunk, own in zip(chunks, chosen)
        ]
        numbers = [own + [_NOWHERE // size] * (most - len(own)) for own in chosen]
        self.blocks = torch.tensor(tables, device=device).flatten()
        slots = (torch.tensor(numbers, device=device)[..., None] * size + torch.arange(size, device=device)).flatten(1)
        starts = torch.tensor([chunk.start for chunk in chunks], device=device)
        places = starts[:, None] + torch.arange(chunks[0].count, device=device)
        self._slots, self._at = slots[:, None, None], places[:, None, :, None]  # (P, 1, 1, S), (P, 1, T, 1)
        self._is_sink = self._slots < kept.sinks
        # Sinks stand in the first blocks of every row; a query far from them is turned otherwise for them.
        self._columns = kept.num_sink_blocks(size) * size if int(places.max()) >= kept.sinks + kept.window else 0
        self._seen: dict[int | None, Tensor] = {}

    def attend(self, near: Tensor, far: Tensor, keys: Tensor, values: Tensor, rule: Rule) -> Tensor:
        """Attention (H, N, D) of queries, turned for the window and for the sinks, over blocks (n, G, size, D)."""
        heads, _, width = near.shape
        groups = keys.shape[1]
        keys, values = (
            some.view(self.rows, -1, *some.shape[1:]).transpose(1, 2).flatten(2, 3) for some in (keys, values)
        )  # (P, G, S, D)
        scale = width**-0.5 if rule.scale is None else rule.scale

        def scored(query: Tensor, keys: Tensor) -> Tensor:
            rows = query.view(heads, self.rows, -1, width).transpose(0, 1)  # (P, H, T, D)
            rows = (rows * scale).to(keys.dtype).reshape(self.rows, groups, -1, width)
            return torch.matmul(rows, keys.mT).float().view(self.rows, heads, -1, keys.shape[2])

        scores = scored(near, keys)  # (P, H, T, S)
        if self._columns:
            some = scores[..., : self._columns]
            some.copy_(torch.where(self._is_sink[..., : self._columns], scored(far, keys[:, :, : self._columns]), some))
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        if rule.alibi:
            scores = scores - alibi_slopes(heads).to(scores.device)[:, None, None] * self._distance()
        shares = scores.masked_fill_(~self._visible(rule.window), float("-inf")).softmax(-1).to(values.dtype)
        shares = shares.view(self.rows, groups, -1, shares.shape[3])
        seen = torch.matmul(shares, values).view(self.rows, heads, -1, width)
        return seen.transpose(0, 1).reshape(heads, -1, width).to(near.dtype)

    def _visible(self, own_window: int | None) -> Tensor:
        """(P, 1, T, S) bool; `own_window` is one that the layer was trained with."""
        if own_window not in self._seen:
            before = self._slots <= self._at
            if own_window is not None and own_window <= self._kept.window:
                self._seen[own_window] = before & (self._at - self._slots < own_window)
            else:
                self._seen[own_window] = before & ((self._at - self._slots < self._kept.window) | self._is_sink)
        return self._seen[own_window]

    def _distance(self) -> Tensor:
        in_cache = self._at.clamp(max=self._kept.sinks + self._kept.window - 1)
        return torch.where(self._is_sink, in_cache - self._slots, self._at - self._slots)
