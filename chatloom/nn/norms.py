"""Normalisation layers. LayerNorm (Ba et al. 2016) is torch's own; RMSNorm (Zhang and Sennrich 2019, eq. 4) is here."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis, computed in fp32 as the families' own code does."""

    def __init__(self, width: int, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return nn.functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.epsilon).to(x.dtype)
