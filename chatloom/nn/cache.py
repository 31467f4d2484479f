"""How a token sees the tokens before it: the one seam between training and decoding.

A model never asks whether it trains or decodes. It hands queries, keys and values to `cache.attend` and gets the
attended values back, so there is a single forward pass:

* `Causal`: one document a row. Right padding needs no mask, because real tokens never look at later ones.
* `Packed`: several documents a row; attention and positions stay within a document.
* `Dense`: decoding; keys and values of each row are kept, rows may have different lengths.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from chatloom.nn.blockwise import attend_blockwise
from chatloom.nn.positions import alibi_slopes


@dataclass(frozen=True, slots=True)
class Rule:
    """How a layer scores what it sees, where that is not softmax(q k' / sqrt(D)) over all that came before.

    Attributes:
        scale: instead of 1 / sqrt(D).
        window: a token sees itself and the window - 1 tokens before it (Child et al. 2019; Mistral).
        softcap: scores become softcap * tanh(score / softcap) (Gemma 2, section 2).
        alibi: a score loses the head's slope for every token of distance (Press et al. 2022).
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    alibi: bool = False


PLAIN = Rule()


class Cache(Protocol):
    """What a model needs to know about context."""

    def positions(self, tokens: Tensor) -> Tensor:
        """Position of each token in its document. (B, T) int64."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, rule: Rule = PLAIN) -> Tensor:
        """Attention of `query` (B, H, T, D) over `key` and `value` (B, G, T, D) and what is cached: (B, H, T, D)."""


def _share_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat key/value heads for grouped queries (Ainslie et al. 2023): (B, G, T, D) -> (B, H, T, D)."""
    repeats = query.shape[1] // key.shape[1]
    if repeats == 1:
        return key, value
    return key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)


# Up to this many tokens a row the written-out attention is used; beyond, the memory of its probabilities counts.
_BLOCKWISE_UP_TO = 512


class Mask:
    """Who sees whom in one forward pass; what the layers share is made once.

    `seen` is (B or 1, 1, T, S) bool; None is all that came before. `places` are where the queries (B, T) and the keys
    (B or 1, S) stand; None is their index in the row. Distances of all pairs are made only where a rule asks for them:
    they take eight times the memory of `seen`.
    """

    def __init__(self, seen: Tensor | None, places: tuple[Tensor, Tensor] | None = None) -> None:
        self._seen = seen
        self._places = places
        self._made: dict[tuple[object, ...], Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention (B, H, T, D) of `query` over `key` and `value` (B, G, S, D)."""
        key, value = _share_heads(query, key, value)
        if rule.softcap is not None:
            return _attend_capped(query, key, value, self.floor(query, rule), rule)
        own = self._places is None  # no keys beside the row's own
        if own and query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= _BLOCKWISE_UP_TO:
            return attend_blockwise(query, key, value, self.floor(query, rule), rule.scale)
        mask = self.floor(query, rule) if rule.alibi else self.seen(query, rule)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=rule.scale
        )

    def seen(self, query: Tensor, rule: Rule) -> Tensor | None:
        """(B or 1, 1, T, S) bool; None where all that came before is seen."""
        if rule.window is None or (self._places is None and rule.window >= query.shape[2]):
            return self._seen
        key = ("seen", query.shape[2], rule.window)
        if key not in self._made:
            near = self._far(query) < rule.window
            self._made[key] = near & (self._causal(query) if self._seen is None else self._seen)
        return self._made[key]

    def floor(self, query: Tensor, rule: Rule) -> Tensor:
        """What is added to the scores, (B or 1, H or 1, T, S) in the dtype of `query`: -inf where not seen."""
        key = ("floor", query.shape[2], query.dtype, rule.window, query.shape[1] if rule.alibi else 0)
        if key not in self._made:
            seen = self.seen(query, rule)
            seen = self._causal(query) if seen is None else seen
            bias = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
            if rule.alibi:
                slopes = alibi_slopes(query.shape[1]).to(query.device)[:, None, None]
                bias = (-slopes * self._far(query)).to(query.dtype)
            self._made[key] = bias.masked_fill(~seen, float("-inf"))
        return self._made[key]

    def _far(self, query: Tensor) -> Tensor:
        if self._places is not None:
            queries, keys = self._places
            return (queries[:, :, None] - keys[:, None, :])[:, None]
        index = torch.arange(query.shape[2], device=query.device)
        return (index[:, None] - index)[None, None]

    def _causal(self, query: Tensor) -> Tensor:
        return self._far(query) >= 0


def _attend_capped(query: Tensor, key: Tensor, value: Tensor, floor: Tensor, rule: Rule) -> Tensor:
    """Attention with softcapped scores, written out: no fused kernel has them. Softmax in fp32."""
    assert rule.softcap is not None
    scale = query.shape[3] ** -0.5 if rule.scale is None else rule.scale
    scores = torch.matmul(query * scale, key.mT).float()  # (B, H, T, S)
    scores = rule.softcap * torch.tanh(scores / rule.softcap) + floor
    return torch.matmul(scores.softmax(-1).to(value.dtype), value)


class Causal:
    """Every token sees itself and what stands before it in its row."""

    def __init__(self) -> None:
        self._mask = Mask(None)

    def positions(self, tokens: Tensor) -> Tensor:
        """0, 1, 2, ... in every row."""
        return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, rule: Rule = PLAIN) -> Tensor:
        """Causal attention within the row."""
        return self._mask.attend(query, key, value, rule)


class Packed:
    """Rows that hold several documents, told apart by `documents` (B, T): 0 is padding, 1, 2, ... the documents.

    A document need not be contiguous with padding around it, so left padding is this too: positions are the
    cumulative count of real tokens of the document, minus one.
    """

    def __init__(self, documents: Tensor) -> None:
        time = documents.shape[1]
        same = documents[:, None, :, None] == documents[:, None, None, :]  # (B, 1, T, T)
        causal = torch.ones(time, time, dtype=torch.bool, device=documents.device).tril()
        self._mask = Mask(same & causal)
        starts = torch.ones_like(documents, dtype=torch.bool)
        starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
        index = torch.arange(time, device=documents.device).expand(documents.shape)
        self._positions = index - torch.where(starts, index, 0).cummax(dim=1).values

    def positions(self, tokens: Tensor) -> Tensor:
        """Positions that restart at every document."""
        return self._positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, rule: Rule = PLAIN) -> Tensor:
        """Causal attention within each document."""
        return self._mask.attend(query, key, value, rule)


_ROOM = 32  # tokens by which a decoding cache grows beyond what it must hold


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
        self._capacity = capacity
        shape = (num_layers, batch, num_key_value_heads, 0, head_width)  # room is made as it is needed
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)  # (B,)
        self._counts = self.lengths
        self._mask = Mask(None)
        self._index = self.lengths
        self._longest = 0

    def start(self, keys: Tensor, values: Tensor) -> None:
        """Put keys and values (L, G, P, D) of virtual tokens before all rows' first tokens."""
        num_tokens = self._longest = keys.shape[2]
        self._make_room()
        self.keys[:, :, :, :num_tokens] = keys[:, None].to(self.keys.dtype)
        self.values[:, :, :, :num_tokens] = values[:, None].to(self.values.dtype)
        self.lengths = torch.full_like(self.lengths, num_tokens)

    def _make_room(self) -> None:
        """Hold the longest row. Every step reads all the room there is, so it grows a little at a time."""
        missing = self._longest - self.keys.shape[3]
        if missing > 0:
            room = min(self._capacity, self._longest + _ROOM) - self.keys.shape[3]
            self.keys, self.values = (F.pad(kept, (0, 0, 0, room)) for kept in (self.keys, self.values))

    def _span(self, time: int) -> int:
        """How many slots a forward pass of `time` tokens a row looks at: one token looks at all the room."""
        return self.keys.shape[3] if time == 1 else self._longest

    def begin(self, counts: Tensor) -> None:
        """Announce how many of the next forward's tokens are real in each row: (B,) int64, each at least 1."""
        self._counts = counts

    def advance(self) -> None:
        """Take the last forward's tokens as seen."""
        self.lengths = self.lengths + self._counts

    def positions(self, tokens: Tensor) -> Tensor:
        """Continue each row where it stands."""
        time = tokens.shape[1]
        self._index = self.lengths[:, None] + torch.arange(time, device=tokens.device)  # (B, T)
        # Where each row has one token, the longest is known without reading a number back from the device.
        longest = self._longest + 1 if time == 1 and self._longest else int(self._index.max()) + 1
        self._longest = min(longest, self._capacity)
        self._make_room()
        self._index = self._index.clamp_(max=self.keys.shape[3] - 1)
        slots = torch.arange(self._span(time), device=tokens.device)
        seen = (self._index[:, :, None] >= slots)[:, None]  # (B, 1, T, S)
        self._mask = Mask(seen, (self._index, slots[None]))
        return self._index

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, rule: Rule = PLAIN) -> Tensor:
        """Store this step's keys and values, then attend over all that each row has seen."""
        rows = torch.arange(key.shape[0], device=key.device)[:, None]
        keys, values = self.keys[layer], self.values[layer]
        keys[rows, :, self._index] = key.transpose(1, 2).to(keys.dtype)
        values[rows, :, self._index] = value.transpose(1, 2).to(values.dtype)
        if query.shape[2] == 1 and query.device.type == "cpu":
            return self._attend_one(query, keys, values, rule).to(query.dtype)
        dtype = query.dtype
        span = self._span(query.shape[2])
        seen_keys, seen_values = keys[:, :, :span].to(dtype), values[:, :, :span].to(dtype)
        return self._mask.attend(query, seen_keys, seen_values, rule)

    def _attend_one(self, query: Tensor, keys: Tensor, values: Tensor, rule: Rule) -> Tensor:
        """Attention of one query a row as two batched products: on a CPU faster than the fused kernel by a third."""
        batch, heads, _, width = query.shape
        groups, room = keys.shape[1:3]
        query = (query * (width**-0.5 if rule.scale is None else rule.scale)).to(keys.dtype)
        shared = query.reshape(batch * groups, heads // groups, width)
        scores = torch.bmm(shared, keys.view(batch * groups, room, width).transpose(1, 2))
        scores = scores.view(batch, heads, 1, room)
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        scores = (scores + self._mask.floor(query, rule)).softmax(-1).to(values.dtype)
        seen = torch.bmm(scores.view(batch * groups, -1, room), values.view(batch * groups, room, width))
        return seen.view(batch, heads, 1, width)

    def select(self, rows: Tensor) -> "Dense":
        """The cache of the given rows, in their order; a row may be named more than once."""
        chosen = object.__new__(Dense)
        chosen.keys, chosen.values = self.keys[:, rows], self.values[:, rows]
        chosen.lengths = self.lengths[rows]
        chosen._longest, chosen._capacity = self._longest, self._capacity
        chosen.begin(self._counts[rows])
        return chosen
