"""Advantages from rewards and values (Schulman et al. 2015, eq. 16), and whitening.

Everything is (N, L): N responses, right-padded to L tokens, with a boolean mask of the real ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lambda_: float = 0.95) -> Tensor:
    """Generalised advantage estimates.

    With delta_t = r_t + gamma * V_{t+1} - V_t (V is 0 after the last token), A_t is the sum over k of
    (gamma * lambda)^k * delta_{t+k}. That sum is one product with a triangular matrix of powers.

    Args:
        rewards, values: (N, L); what stands at padding is not read.
        mask: (N, L) bool, true on each response's tokens, which come first.

    Returns:
        (N, L), 0 at padding. Returns for the critic are these plus the values.
    """
    rewards, values = rewards * mask, values * mask
    after = torch.zeros_like(values)
    after[:, :-1] = values[:, 1:]
    deltas = (rewards + gamma * after - values) * mask  # (N, L)
    steps = torch.arange(rewards.shape[1], device=rewards.device)
    ahead = steps[:, None] - steps[None, :]  # how far row's delta lies ahead of column's token
    powers = torch.where(ahead >= 0, (gamma * lambda_) ** ahead.clamp(min=0).to(values.dtype), 0.0)
    return (deltas @ powers) * mask


def whiten(
    values: Tensor,
    mask: Tensor,
    *,
    shift_mean: bool,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Scale to variance 1 over the masked entries; detail 15.

    The variance is the population's (divided by n, not n - 1). `shift_mean` moves the mean to 0 (advantages),
    otherwise it stays what it was (rewards). `reduce` sums a tensor over ranks in place, so that all ranks whiten by
    the same numbers. Entries outside the mask come back as 0.
    """
    wide = values.double() * mask
    sums = torch.stack([mask.sum().double(), wide.sum(), wide.square().sum()])
    if reduce is not None:
        sums = reduce(sums)
    count = sums[0].clamp(min=1.0)
    mean = sums[1] / count
    variance = (sums[2] / count - mean.square()).clamp(min=0.0)
    whitened = (wide - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return (whitened * mask).to(values.dtype)
