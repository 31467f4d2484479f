"""Normalisation layers. LayerNorm (Ba et al. 2016) is torch's own; RMSNorm (Zhang and Sennrich 2019, eq. 4) is here.

torch has a kernel for RMSNorm on GPUs. On a CPU it takes the formula apart into a dozen passes forward and backward;
half of them, written out here, give the same numbers (8,192 x 128 in fp32, forward and backward on one core: 3.5 ms
against 12).
"""

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis, computed in fp32 as the families' own code does.

    With an `offset` of 1 the factor is 1 + weight and the weight starts at zero (Gemma).
    """

    def __init__(self, width: int, *, epsilon: float = 1e-5, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self.epsilon = epsilon
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        wide, weight = x.float(), self.weight.float()
        if self.offset:
            weight = weight + self.offset
        if x.device.type != "cpu":
            return nn.functional.rms_norm(wide, weight.shape, weight, self.epsilon).to(x.dtype)
        if not torch.is_grad_enabled():  # calling an autograd function takes as long as half of its operations
            return _normalised(wide, weight, self.epsilon)[0].to(x.dtype)
        normalised: Tensor = _RMSNorm.apply(wide, weight, self.epsilon)  # type: ignore[no-untyped-call]
        return normalised.to(x.dtype)


class LayerNormPerHead(nn.Module):
    """LayerNorm over each head of (B, H, T, D), without biases and with weights of its own for every head."""

    def __init__(self, num_heads: int, width: int, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=epsilon, bias=False) for _ in range(num_heads))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H, T, D)."""
        weights = torch.stack([norm.get_parameter("weight") for norm in self.norms])[:, None]  # (H, 1, D)
        return nn.functional.layer_norm(x, x.shape[-1:], eps=self.epsilon) * weights.to(x.dtype)


def _normalised(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x * scale * weight, and scale (..., 1), which is 1 / sqrt(mean(x^2) + epsilon)."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return (x * scale).mul_(weight), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normalised, scale = _normalised(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return normalised

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        unit = x * scale
        # Frozen under an adapter.
        to_weight = (gradient * unit).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        along = gradient * weight
        # What points along x would only change its length, which the norm takes out again.
        share = (along * unit).mean(-1, keepdim=True)
        return along.addcmul_(unit, share, value=-1).mul_(scale), to_weight, None
