"""Multi-head attention (Vaswani et al. 2017, section 3.2), with grouped queries (Ainslie et al. 2023).

The cache decides what is seen (`nn/cache.py`); this module only projects. Query, key and value projections are
separate matrices, as the LLaMA checkpoints and adapters name them. Some families normalise queries and keys per head
before they are turned (Henry et al. 2020; Qwen3, Gemma 3).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chatloom.nn.cache import PLAIN, Cache, Rule
from chatloom.nn.positions import Angles, rotate


class Attention(nn.Module):
    """Self-attention with optional rotary positions."""

    joined: nn.Module | None

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        num_key_value_heads: int | None = None,
        head_width: int | None = None,
        bias: bool = False,
        output_bias: bool | None = None,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
        rule: Rule = PLAIN,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_key_value_heads = num_key_value_heads or num_heads
        self.head_width = head_width or width // num_heads
        self.query = nn.Linear(width, self.num_heads * self.head_width, bias=bias)
        self.key = nn.Linear(width, self.num_key_value_heads * self.head_width, bias=bias)
        self.value = nn.Linear(width, self.num_key_value_heads * self.head_width, bias=bias)
        self.output = nn.Linear(
            self.num_heads * self.head_width, width, bias=bias if output_bias is None else output_bias
        )
        self.register_module("joined", None)  # the three matrices as one, in a copy that is decoded with
        self.query_norm = query_norm
        self.key_norm = key_norm
        self.rule = rule

    def forward(self, x: Tensor, layer: int, cache: Cache, angles: Angles | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); `angles` are the rotary tables at the tokens' positions."""
        batch, time, _ = x.shape
        split = (batch, time, -1, self.head_width)
        if self.joined is None:
            query, key, value = (part(x).view(split).transpose(1, 2) for part in (self.query, self.key, self.value))
        else:
            heads = self.joined(x).view(split).transpose(1, 2)  # (B, H + 2 G, T, D)
            if angles is not None and self.query_norm is None:
                turning = self.num_heads + self.num_key_value_heads
                query, key = self._split(rotate(heads[:, :turning], *angles))
                value, angles = heads[:, turning:], None
            else:
                query, key, value = self._split(heads)
        # query (B, H, T, D), key and value (B, G, T, D)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if angles is not None:
            query, key = rotate(query, *angles), rotate(key, *angles)
        seen = cache.attend(layer, query, key, value, rule=self.rule)  # (B, H, T, D)
        projected: Tensor = self.output(seen.transpose(1, 2).reshape(batch, time, -1))
        return projected

    def _split(self, heads: Tensor) -> Sequence[Tensor]:
        """The heads of the queries, of the keys and, where they are there, of the values."""
        shared = self.num_key_value_heads
        others = (heads.shape[1] - self.num_heads) // shared
        return torch.split(heads, [self.num_heads, *[shared] * others], 1)
