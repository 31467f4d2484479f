"""Generalised advantages by hand and against the recursion; whitening over ranks."""

import pytest
import torch
from torch import Tensor

from chatloom.rl.advantages import gae, whiten


def test_three_tokens_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.8]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    # deltas: 0 + 0.6 - 0.5 = 0.1, 0 + 0.8 - 0.6 = 0.2, 1 + 0 - 0.8 = 0.2
    advantages = gae(rewards, values, mask, gamma=1.0, lambda_=0.5)
    assert advantages.tolist()[0] == pytest.approx([0.1 + 0.5 * 0.2 + 0.25 * 0.2, 0.2 + 0.5 * 0.2, 0.2])


def recursion(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lambda_: float) -> Tensor:
    """Schulman et al. 2015, eq. 16, from the last token back."""
    result = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        after = ahead = 0.0
        for t in reversed(range(int(mask[row].sum()))):
            delta = float(rewards[row, t]) + gamma * after - float(values[row, t])
            ahead = delta + gamma * lambda_ * ahead
            after = float(values[row, t])
            result[row, t] = ahead
    return result


@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 0.95), (0.9, 1.0), (1.0, 0.0), (0.0, 0.5)])
def test_equals_the_recursion_whatever_stands_at_padding(gamma: float, lambda_: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 5, 9, generator=generator).unbind()
    mask = torch.arange(9) < torch.tensor([9, 1, 4, 8, 2])[:, None]
    expected = recursion(rewards, values, mask, gamma, lambda_)
    assert torch.allclose(gae(rewards, values, mask, gamma=gamma, lambda_=lambda_), expected, atol=1e-5)


def test_lambda_one_is_the_return_less_the_value() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.3, -0.2, 9.0]])
    advantages = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lambda_=1.0)
    assert (advantages + values).tolist()[0] == pytest.approx([6, 5, 3])


def test_ranks_whiten_by_the_same_numbers() -> None:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(6) < torch.tensor([6, 3, 5, 1])[:, None]
    whole = whiten(values, mask, shift_mean=True)
    ranks = slice(0, 1), slice(1, 4)
    sums: list[Tensor] = []

    def collected(tensor: Tensor) -> Tensor:
        sums.append(tensor)
        return tensor

    def summed(tensor: Tensor) -> Tensor:
        return sums[0] + sums[1]

    for part in ranks:
        whiten(values[part], mask[part], shift_mean=True, reduce=collected)
    parts = [whiten(values[part], mask[part], shift_mean=True, reduce=summed) for part in ranks]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


def test_equal_values_do_not_divide_by_zero() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert whiten(torch.full((1, 3), 2.0), mask, shift_mean=True).abs().max() < 1e-3
    assert whiten(torch.full((1, 3), 2.0), mask, shift_mean=False)[0].tolist() == pytest.approx([2, 2, 2], abs=1e-3)
