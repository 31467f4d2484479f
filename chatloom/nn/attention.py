"""Multi-head attention (Vaswani et al. 2017, section 3.2), with grouped queries (Ainslie et al. 2023).

The cache decides what is seen (`nn/cache.py`); this module only projects. Query, key and value projections are
separate matrices, as the LLaMA checkpoints and adapters name them. Some families normalise queries and keys per head
before they are turned (Henry et al. 2020; Qwen3, Gemma 3).
"""

from torch import Tensor, nn

from chatloom.nn.cache import PLAIN, Cache, Rule
from chatloom.nn.positions import Angles, rotate


class Attention(nn.Module):
    """Self-attention with optional rotary positions."""

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
        self.query_norm = query_norm
        self.key_norm = key_norm
        self.rule = rule

    def forward(self, x: Tensor, layer: int, cache: Cache, angles: Angles | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); `angles` are the rotary tables at the tokens' positions."""
        batch, time, _ = x.shape
        split = (batch, time, -1, self.head_width)
        query = self.query(x).view(split).transpose(1, 2)  # (B, H, T, D)
        key = self.key(x).view(split).transpose(1, 2)  # (B, G, T, D)
        value = self.value(x).view(split).transpose(1, 2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if angles is not None:
            query, key = rotate(query, *angles), rotate(key, *angles)
        seen = cache.attend(layer, query, key, value, rule=self.rule)  # (B, H, T, D)
        projected: Tensor = self.output(seen.transpose(1, 2).reshape(batch, time, -1))
        return projected
