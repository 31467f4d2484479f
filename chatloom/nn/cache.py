"""How a token sees the tokens before it: the one seam between training and decoding.

A model never asks whether it trains or decodes. It hands queries, keys and values to `cache.attend` and gets the
attended values back, so there is a single forward pass:

* `Causal`: one document a row. Right padding needs no mask, because real tokens never look at later ones.
* `Packed`: several documents a row; attention and positions stay within a document.
* `Dense`: decoding; keys and values of each row are kept, rows may have different lengths.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from chatloom.nn.blockwise import attend_blockwise


class Cache(Protocol):
    """What a model needs to know about context."""

    def positions(self, tokens: Tensor) -> Tensor:
        """Position of each token in its document. (B, T) int64."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of `query` (B, H, T, D) over `key` and `value` (B, G, T, D) and what is cached: (B, H, T, D)."""


def _share_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat key/value heads for grouped queries (Ainslie et al. 2023): (B, G, T, D) -> (B, H, T, D)."""
    repeats = query.shape[1] // key.shape[1]
    if repeats == 1:
        return key, value
    return key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)


# Up to this many tokens a row the written-out attention is used; beyond, the memory of its probabilities counts.
_BLOCKWISE_UP_TO = 512


class _Mask:
    """Who sees whom in a causal forward pass. `seen` is (B or 1, 1, T, T) bool; None is all that came before."""

    def __init__(self, seen: Tensor | None) -> None:
        self.seen = seen
        self._floor: Tensor | None = None  # made once for all layers

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention (B, H, T, D) of `query` over `key` and `value` (B, G, T, D), which has no cache beside them."""
        key, value = _share_heads(query, key, value)
        if query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= _BLOCKWISE_UP_TO:
            return attend_blockwise(query, key, value, self._as_floor(query))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.seen, is_causal=self.seen is None)

    def _as_floor(self, query: Tensor) -> Tensor:
        """0 where seen and -inf where not, in the dtype of `query`."""
        time = query.shape[2]
        if self._floor is None or self._floor.dtype != query.dtype or self._floor.shape[3] != time:
            seen = torch.ones(1, 1, time, time, dtype=torch.bool).tril() if self.seen is None else self.seen
            self._floor = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
        return self._floor


class Causal:
    """Every token sees itself and what stands before it in its row."""

    def __init__(self) -> None:
        self._mask = _Mask(None)

    def positions(self, tokens: Tensor) -> Tensor:
        """0, 1, 2, ... in every row."""
        return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention within the row."""
        return self._mask.attend(query, key, value)


class Packed:
    """Rows that hold several documents, told apart by `documents` (B, T): 0 is padding, 1, 2, ... the documents.

    A document need not be contiguous with padding around it, so left padding is this too: positions are the
    cumulative count of real tokens of the document, minus one.
    """

    def __init__(self, documents: Tensor) -> None:
        time = documents.shape[1]
        same = documents[:, None, :, None] == documents[:, None, None, :]  # (B, 1, T, T)
        causal = torch.ones(time, time, dtype=torch.bool, device=documents.device).tril()
        self._mask = _Mask(same & causal)
        starts = torch.ones_like(documents, dtype=torch.bool)
        starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
        index = torch.arange(time, device=documents.device).expand(documents.shape)
        self._positions = index - torch.where(starts, index, 0).cummax(dim=1).values

    def positions(self, tokens: Tensor) -> Tensor:
        """Positions that restart at every document."""
        return self._positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention within each document."""
        return self._mask.attend(query, key, value)


class Dense:
    """Keys and values of decoded rows in one preallocated block a layer; rows advance by their own counts.

    Call `begin(counts)` before a forward pass whose row `b` brings `counts[b]` real tokens (right-padded), then
    `advance()` after it. What padding wrote lies beyond the row's length, is never looked at, and is overwritten.
    """

    def __init__(
        self,
        num_layers: int,
        batch: int,
        capacity: int,
        num_key_value_heads: int,
        head_width: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        shape = (num_layers, batch, num_key_value_heads, capacity, head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)  # (B,)
        self._counts = self.lengths
        self._mask: Tensor | None = None
        self._bias = self.keys
        self._index = self.lengths
        self._span = 0

    def start(self, keys: Tensor, values: Tensor) -> None:
        """Put keys and values (L, G, P, D) of virtual tokens before all rows' first tokens."""
        num_tokens = keys.shape[2]
        self.keys[:, :, :, :num_tokens] = keys[:, None].to(self.keys.dtype)
        self.values[:, :, :, :num_tokens] = values[:, None].to(self.values.dtype)
        self.lengths = torch.full_like(self.lengths, num_tokens)

    def begin(self, counts: Tensor) -> None:
        """Announce how many of the next forward's tokens are real in each row: (B,) int64, each at least 1."""
        self._counts = counts
        self._mask = None

    def advance(self) -> None:
        """Take the last forward's tokens as seen."""
        self.lengths = self.lengths + self._counts

    def positions(self, tokens: Tensor) -> Tensor:
        """Continue each row where it stands."""
        time, capacity = tokens.shape[1], self.keys.shape[3]
        self._index = self.lengths[:, None] + torch.arange(time, device=tokens.device)  # (B, T)
        self._index = self._index.clamp_(max=capacity - 1)
        # One token a row looks at the whole block, which needs no number read back from the device.
        self._span = capacity if time == 1 else int(self._index.max()) + 1
        slots = torch.arange(self._span, device=tokens.device)
        self._mask = (slots <= self._index[:, :, None])[:, None]  # (B, 1, T, S)
        if time == 1:
            hidden = torch.zeros(self._mask.shape, dtype=self.keys.dtype, device=tokens.device)
            self._bias = hidden.masked_fill_(~self._mask, float("-inf"))
        return self._index

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store this step's keys and values, then attend over all that each row has seen."""
        rows = torch.arange(key.shape[0], device=key.device)[:, None]
        keys, values = self.keys[layer], self.values[layer]
        keys[rows, :, self._index] = key.transpose(1, 2).to(keys.dtype)
        values[rows, :, self._index] = value.transpose(1, 2).to(values.dtype)
        if query.shape[2] == 1 and query.device.type == "cpu":
            return self._attend_one(query, keys, values).to(query.dtype)
        seen_keys, seen_values = _share_heads(query, keys[:, :, : self._span], values[:, :, : self._span])
        dtype = query.dtype
        return F.scaled_dot_product_attention(query, seen_keys.to(dtype), seen_values.to(dtype), attn_mask=self._mask)

    def _attend_one(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of one query a row as two batched products: on a CPU faster than the fused kernel by a third."""
        batch, heads, _, width = query.shape
        groups, capacity = keys.shape[1:3]
        shared = (query * width**-0.5).to(keys.dtype).reshape(batch * groups, heads // groups, width)
        scores = torch.bmm(shared, keys.view(batch * groups, capacity, width).transpose(1, 2))
        scores = (scores.view(batch, groups, -1, capacity) + self._bias).softmax(-1).to(values.dtype)
        seen = torch.bmm(scores.view(batch * groups, -1, capacity), values.view(batch * groups, capacity, width))
        return seen.view(batch, heads, 1, width)

    def select(self, rows: Tensor) -> "Dense":
        """The cache of the given rows, in their order; a row may be named more than once."""
        chosen = object.__new__(Dense)
        chosen.keys, chosen.values = self.keys[:, rows], self.values[:, rows]
        chosen.lengths = self.lengths[rows]
        chosen.begin(self._counts[rows])
        return chosen
