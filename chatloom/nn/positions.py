"""Where a token stands. Learned positions are an `nn.Embedding`; rotary positions are here.

Rotary embedding (Su et al. 2021, section 3.4): channel pairs of queries and keys are turned by an angle
proportional to the position, so that their product depends on the distance alone. Pairs are (i, i + D/2), the
layout of the LLaMA checkpoints.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Tables of cosines and sines, made once for the context length and read by position."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, head_width: int, context_length: int, *, theta: float = 10_000.0) -> None:
        super().__init__()
        frequencies = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
        angles = torch.arange(context_length, dtype=torch.float32)[:, None] * frequencies  # (T, D/2)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        # The first half of the channels is turned the other way, so the sign sits in the table.
        sign = torch.cat((-torch.ones(head_width // 2), torch.ones(head_width // 2)))
        self.register_buffer("sines", angles.sin() * sign, persistent=False)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of `positions` (B, T): two of (B, 1, T, D)."""
        return self.cosines[positions].unsqueeze(1), self.sines[positions].unsqueeze(1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn the channel pairs of `x` (B, H, T, D), in the dtype of `x`, by the tables of `Rotary.at`."""
    turned: Tensor = _Rotation.apply(x, cosines, sines)  # type: ignore[no-untyped-call]
    return turned


def _turn(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.addcmul(x * cosines, torch.cat((x[..., half:], x[..., :half]), dim=-1), sines)


class _Rotation(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: one turn, where autograd would take the halves apart again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        cosines, sines = cosines.to(x.dtype), sines.to(x.dtype)
        ctx.save_for_backward(cosines, sines)
        return _turn(x, cosines, sines)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _turn(gradient, cosines, -sines), None, None
