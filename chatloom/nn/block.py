"""One transformer layer, in the three orders that the families use.

* `Block`, pre-norm: x + attention(norm(x)), then x + feedforward(norm(x)) (Radford et al. 2019, section 2.3). With
  norms after each half too it is the sandwich of Gemma 2 and GLM-4 (Ding et al. 2021, section 2.4).
* `PostNormBlock`: norm(x + attention(x)), then norm(x + feedforward(x)) (Vaswani et al. 2017, section 3.1; GPT-1).
* `ParallelBlock`: x + attention(norm(x)) + feedforward(norm(x)) (Wang and Komatsuzaki 2021, GPT-J; GPT-NeoX).
"""

import torch
from torch import Tensor, nn

from chatloom.nn.attention import Attention
from chatloom.nn.cache import Cache
from chatloom.nn.positions import Angles


class Block(nn.Module):
    """Pre-norm residual layer; dropout is applied to what each half adds."""

    def __init__(
        self,
        attention: Attention,
        feedforward: nn.Module,
        attention_norm: nn.Module,
        feedforward_norm: nn.Module,
        *,
        attention_output_norm: nn.Module | None = None,
        feedforward_output_norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feedforward = feedforward
        self.attention_norm = attention_norm
        self.feedforward_norm = feedforward_norm
        self.attention_output_norm = attention_output_norm
        self.feedforward_output_norm = feedforward_output_norm
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, layer: int, cache: Cache, angles: Angles | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        attended = self.attention(_for_matrices(self.attention_norm(x)), layer, cache, angles)
        if self.attention_output_norm is not None:
            attended = self.attention_output_norm(attended)
        x = x + self.dropout(attended)
        fed = self.feedforward(_for_matrices(self.feedforward_norm(x)))
        if self.feedforward_output_norm is not None:
            fed = self.feedforward_output_norm(fed)
        output: Tensor = x + self.dropout(fed)
        return output


class PostNormBlock(nn.Module):
    """The residual sum is normalised, so nothing follows the last layer."""

    def __init__(
        self, attention: Attention, feedforward: nn.Module, attention_norm: nn.Module, feedforward_norm: nn.Module
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feedforward = feedforward
        self.attention_norm = attention_norm
        self.feedforward_norm = feedforward_norm
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, layer: int, cache: Cache, angles: Angles | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = self.attention_norm(x + self.dropout(self.attention(_for_matrices(x), layer, cache, angles)))
        output: Tensor = self.feedforward_norm(x + self.dropout(self.feedforward(_for_matrices(x))))
        return output


class ParallelBlock(nn.Module):
    """Both halves read the same x, through one norm or (GPT-NeoX) each through its own."""

    def __init__(
        self,
        attention: Attention,
        feedforward: nn.Module,
        attention_norm: nn.Module,
        feedforward_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feedforward = feedforward
        self.attention_norm = attention_norm
        self.feedforward_norm = feedforward_norm
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, layer: int, cache: Cache, angles: Angles | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        normalised = _for_matrices(self.attention_norm(x))
        attended = self.attention(normalised, layer, cache, angles)
        own = normalised if self.feedforward_norm is None else _for_matrices(self.feedforward_norm(x))
        output: Tensor = x + self.dropout(attended) + self.dropout(self.feedforward(own))
        return output


def _for_matrices(x: Tensor) -> Tensor:
    """Cast once, under autocast, what several matrices read: each would cast it for itself, and back again."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
