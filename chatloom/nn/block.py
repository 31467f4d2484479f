"""One transformer layer, pre-norm: x + attention(norm(x)), then x + feedforward(norm(x)) (Radford et al. 2019, 2.3)."""

import torch
from torch import Tensor, nn

from chatloom.nn.attention import Attention
from chatloom.nn.cache import Cache


class Block(nn.Module):
    """Pre-norm residual layer; dropout is applied to what each half adds."""

    def __init__(
        self,
        attention: Attention,
        feedforward: nn.Module,
        attention_norm: nn.Module,
        feedforward_norm: nn.Module,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feedforward = feedforward
        self.attention_norm = attention_norm
        self.feedforward_norm = feedforward_norm
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, layer: int, cache: Cache, angles: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.dropout(self.attention(_for_matrices(self.attention_norm(x)), layer, cache, angles))
        output: Tensor = x + self.dropout(self.feedforward(_for_matrices(self.feedforward_norm(x))))
        return output


def _for_matrices(x: Tensor) -> Tensor:
    """Cast once, under autocast, what several matrices read: each would cast it for itself, and back again."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
