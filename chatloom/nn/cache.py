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


# Up to this many tokens a row, writing the score matrix out is faster on a CPU than torch's fused kernel (bf16
# training, width 32 to 64 a head: 10 against 19 ms a layer of 8 x 256 tokens); beyond, its memory is what counts.
_EXPLICIT_UP_TO = 512


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k' / sqrt(D)) v (Vaswani et al. 2017, eq. 1) where `mask` (B, 1, T, S) is true; None is causal."""
    key, value = _share_heads(query, key, value)
    time = query.shape[2]
    half = query.dtype == torch.bfloat16 or torch.is_autocast_enabled(query.device.type)
    if query.device.type != "cpu" or not half or time > _EXPLICIT_UP_TO or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
    if mask is None:
        mask = torch.ones(time, time, dtype=torch.bool).tril()
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, H, T, T)
    floor = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    attended: Tensor = (scores + floor).softmax(-1) @ value
    return attended


class Causal:
    """Every token sees itself and what stands before it in its row."""

    def positions(self, tokens: Tensor) -> Tensor:
        """0, 1, 2, ... in every row."""
        return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention within the row."""
        return _attention(query, key, value, None)


class Packed:
    """Rows that hold several documents, told apart by `documents` (B, T): 0 is padding, 1, 2, ... the documents.

    A document need not be contiguous with padding around it, so left padding is this too: positions are the
    cumulative count of real tokens of the document, minus one.
    """

    def __init__(self, documents: Tensor) -> None:
        time = documents.shape[1]
        same = documents[:, None, :, None] == documents[:, None, None, :]  # (B, 1, T, T)
        causal = torch.ones(time, time, dtype=torch.bool, device=documents.device).tril()
        self.mask = same & causal
        starts = torch.ones_like(documents, dtype=torch.bool)
        starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
        index = torch.arange(time, device=documents.device).expand(documents.shape)
        self._positions = index - torch.where(starts, index, 0).cummax(dim=1).values

    def positions(self, tokens: Tensor) -> Tensor:
        """Positions that restart at every document."""
        return self._positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention within each document."""
        return _attention(query, key, value, self.mask)


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
