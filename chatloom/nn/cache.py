"""How a token sees the tokens before it: the one seam between training and decoding.

A model never asks whether it trains or decodes. It hands queries, keys and values to `cache.attend` and gets the
attended values back, so there is a single forward pass:

* `Causal`: one document a row. Right padding needs no mask, because real tokens never look at later ones.
* `Packed`: several documents a row; attention and positions stay within a document.
* `paged.Paged`: decoding; the keys and values of each row are kept in blocks, and a row may bring any number of tokens.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from chatloom.nn.blockwise import attend_blockwise
from chatloom.nn.documents import positions, visible
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
        self._own = places is None or places[0] is places[1]  # no keys beside the row's own
        self._made: dict[tuple[object, ...], Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention (B, H, T, D) of `query` over `key` and `value` (B, G, S, D)."""
        key, value = _share_heads(query, key, value)
        if rule.softcap is not None:
            return _attend_capped(query, key, value, self.floor(query, rule), rule)
        if (
            self._own
            and query.device.type == "cpu"
            and query.dtype == torch.bfloat16
            and query.shape[2] <= _BLOCKWISE_UP_TO
        ):
            return attend_blockwise(query, key, value, self.floor(query, rule), rule.scale)
        mask = self.floor(query, rule) if rule.alibi else self.seen(query, rule)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=rule.scale
        )

    def seen(self, query: Tensor, rule: Rule) -> Tensor | None:
        """(B or 1, 1, T, S) bool; None where all that came before is seen."""
        if rule.window is None or (self._own and rule.window >= query.shape[2]):
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

    A document may continue another (`nn/documents.py`). Left padding is this too: padding is a document of its own.
    """

    def __init__(self, documents: Tensor) -> None:
        self._positions = positions(documents)
        self._mask = Mask(visible(documents)[:, None], (self._positions, self._positions))

    def positions(self, tokens: Tensor) -> Tensor:
        """Positions that restart at every document."""
        return self._positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, rule: Rule = PLAIN) -> Tensor:
        """Causal attention within each document."""
        return self._mask.attend(query, key, value, rule)
