"""Eq. 1 of InstructGPT by hand, against a slow oracle, and what normalisation does."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from chatloom.models import RewardModel
from chatloom.objectives.reward import comparison_loss, normalise, pairwise, reward_objective, strict_pairs
from chatloom.testing.models import tiny_llama


def ints(*values: int) -> Tensor:
    return torch.tensor(values)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_three_responses_by_hand() -> None:
    scores = torch.tensor([2.0, 1.0, 0.5])
    loss = comparison_loss(scores, groups=ints(0, 0, 0), ranks=ints(0, 1, 2))
    pairs = [-math.log(sigmoid(1.0)), -math.log(sigmoid(1.5)), -math.log(sigmoid(0.5))]
    assert loss.total.item() == pytest.approx(sum(pairs) / 3, abs=1e-6)  # 1 / C(3, 2)
    assert loss.weight.item() == 1  # one prompt
    correct, num_pairs = loss.metrics["accuracy"]
    assert (correct.item(), num_pairs.item()) == (3, 3)
    assert loss.metrics["rewards/margins"][0].item() == pytest.approx(1.0 + 1.5 + 0.5)


def test_ties_are_dropped_and_divided_by_strict_pairs() -> None:
    # b ties with c: only a-b and a-c are left of three pairs.
    loss = comparison_loss(torch.tensor([1.0, 0.0, 3.0]), groups=ints(7, 7, 7), ranks=ints(0, 1, 1))
    expected = (-math.log(sigmoid(1.0)) - math.log(sigmoid(-2.0))) / 2
    assert loss.total.item() == pytest.approx(expected, abs=1e-6)
    assert [value.item() for value in loss.metrics["accuracy"]] == [1, 2]


def test_a_prompt_of_ties_alone_does_not_count() -> None:
    scores = torch.tensor([1.0, 0.0, 3.0, 4.0], requires_grad=True)
    loss = comparison_loss(scores, groups=ints(0, 0, 1, 1), ranks=ints(0, 1, 2, 2))
    assert loss.weight.item() == 1
    none = comparison_loss(scores[2:], groups=ints(1, 1), ranks=ints(2, 2))
    assert (none.total.item(), none.weight.item()) == (0, 0)
    none.total.backward()
    assert scores.grad is not None
    assert scores.grad.abs().sum() == 0


def test_many_prompts_equal_a_slow_oracle() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.tensor([5] * 4 + [1] * 9 + [3] * 2)[torch.randperm(15, generator=generator)]
    ranks = torch.randint(4, (15,), generator=generator)
    scores = torch.randn(15, generator=generator)
    total, counted = 0.0, 0
    for prompt in (1, 3, 5):
        members = [index for index in range(15) if groups[index] == prompt]
        losses = [
            -math.log(sigmoid(float(scores[i] - scores[j]))) for i in members for j in members if ranks[i] < ranks[j]
        ]
        if losses:
            total, counted = total + sum(losses) / len(losses), counted + 1
    loss = comparison_loss(scores, groups=groups, ranks=ranks)
    assert loss.total.item() == pytest.approx(total, abs=1e-5)
    assert loss.weight.item() == counted


def test_only_pairs_of_one_prompt_meet() -> None:
    better, worse = strict_pairs(ints(0, 0, 1, 1), ints(0, 1, 0, 1))
    assert sorted(zip(better.tolist(), worse.tolist())) == [(0, 1), (2, 3)]


def test_centering_by_hand() -> None:
    scores, groups, ranks = torch.tensor([2.0, 1.0]), ints(0, 0), ints(0, 1)
    plain = comparison_loss(scores, groups=groups, ranks=ranks)
    centred = comparison_loss(scores, groups=groups, ranks=ranks, centering=0.01)
    assert (centred.total - plain.total).item() == pytest.approx(0.01 * (2 + 1) ** 2, abs=1e-6)
    with pytest.raises(ValueError, match="centering is -1"):
        reward_objective(centering=-1)


def batch() -> dict[str, Tensor]:
    return {
        "tokens": ints(*range(1, 9))[None],
        "documents": torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0]]),
        "ends": torch.tensor([[0, 2], [0, 6]]),
        "groups": ints(0, 0),
        "ranks": ints(1, 0),
    }


def test_training_compares_raw_scores_unless_told_otherwise() -> None:
    model = RewardModel(tiny_llama())
    before = pairwise(model, batch()).total
    model.gain, model.bias = 5.0, 3.0
    assert pairwise(model, batch()).total == before
    assert reward_objective(normalised=True)(model, batch()).total != before


def test_it_learns_to_rank() -> None:
    model: nn.Module = RewardModel(tiny_llama())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(10):
        loss = pairwise(model, batch())
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert pairwise(model, batch()).metrics["accuracy"][0].item() == 1
    assert pairwise(model, batch()).total.item() < 0.1


def test_normalise_gives_mean_zero_and_population_deviation_one() -> None:
    model = SimpleNamespace(gain=1.0, bias=0.0)
    raw = torch.tensor([1.0, 2.0, 6.0])
    normalise(model, scores=raw)
    scores = raw * model.gain + model.bias
    assert scores.mean().item() == pytest.approx(0, abs=1e-6)
    assert scores.square().mean().sqrt().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([1.0], "at least two"), ([1.0, float("nan")], "not finite"), ([2.0, 2.0, 2.0], "no gain gives")],
)
def test_normalise_refuses(scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalise(SimpleNamespace(gain=1.0, bias=0.0), scores=torch.tensor(scores))
