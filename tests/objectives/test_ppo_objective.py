"""PPO's losses by hand on three tokens, and on a real model against slow oracles."""

import math

import pytest
import torch
from torch import Tensor

from chatloom.models import ValueModel
from chatloom.objectives import ppo
from chatloom.objectives.causal_lm import causal_lm
from chatloom.testing.models import tiny_llama

# Ratios of three actions: unchanged, doubled, halved.
OLD = torch.log(torch.tensor([0.5, 0.2, 0.4]))
NEW = torch.log(torch.tensor([0.5, 0.4, 0.2]))


def test_clipped_policy_loss_by_hand() -> None:
    good, decided = ppo.clipped_policy_loss(NEW, OLD, torch.ones(3), clip=0.2)
    # A good action gains nothing beyond 1.2, and is not helped when its ratio fell to 0.5.
    assert good.tolist() == pytest.approx([-1.0, -1.2, -0.5])
    assert decided.tolist() == [False, True, False]
    bad, decided = ppo.clipped_policy_loss(NEW, OLD, -torch.ones(3), clip=0.2)
    assert bad.tolist() == pytest.approx([1.0, 2.0, 0.8])
    assert decided.tolist() == [False, False, True]


def test_upper_clip_of_its_own() -> None:
    loss, _ = ppo.clipped_policy_loss(NEW, OLD, torch.ones(3), clip=0.2, clip_high=0.28)
    assert loss.tolist() == pytest.approx([-1.0, -1.28, -0.5])


def test_dual_clip_bounds_bad_actions_only() -> None:
    huge = OLD + math.log(10.0)
    loss, decided = ppo.clipped_policy_loss(huge, OLD, torch.tensor([-1.0, 1.0, -2.0]), dual_clip=3.0)
    assert loss.tolist() == pytest.approx([3.0, -1.2, 6.0])
    assert decided.all()


def test_clipped_value_loss_by_hand() -> None:
    values, old, returns = torch.tensor([1.0, 0.5, 0.1]), torch.tensor([0.0, 0.4, 0.0]), torch.tensor([2.0, 1.0, 0.0])
    loss, decided = ppo.clipped_value_loss(values, old, returns, clip=0.2)
    # The first moved by 1.0, counts as 0.2 and so keeps the error of 0.2; the others moved less than 0.2.
    assert loss.tolist() == pytest.approx([0.5 * 1.8**2, 0.5 * 0.5**2, 0.5 * 0.1**2])
    assert decided.tolist() == [True, False, False]
    assert ppo.clipped_value_loss(values, old, returns, clip=None)[0].tolist() == pytest.approx([0.5, 0.125, 0.005])


def rows() -> dict[str, Tensor]:
    """Two rows, three episodes; actions are where the next token is a response's."""
    generator = torch.Generator().manual_seed(1)
    actions = torch.zeros(2, 12, dtype=torch.bool)
    actions[0, 2:5] = actions[0, 8:10] = actions[1, 0:7] = True
    return {
        "tokens": torch.randint(1, 250, (2, 12), generator=generator),
        "documents": torch.tensor([[1] * 6 + [2] * 5 + [0], [1] * 8 + [0] * 4]),
        "actions": actions,
        "advantages": torch.randn(2, 12, generator=generator),
        "returns": torch.randn(2, 12, generator=generator),
        "old_values": torch.zeros(2, 12),
    }


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_action_logprobs_equal_the_whole_softmax(temperature: float) -> None:
    model, batch = tiny_llama(), rows()
    logprobs, entropy = ppo.action_logprobs(model, batch, temperature=temperature, entropy="detached")
    every = (model(batch["tokens"], documents=batch["documents"]) / temperature).log_softmax(dim=-1)
    at = batch["actions"].nonzero().tolist()
    expected = [every[row, column, batch["tokens"][row, column + 1]].item() for row, column in at]
    assert logprobs.tolist() == pytest.approx(expected, abs=1e-5)
    entropies = [-(every[row, column].exp() * every[row, column]).sum().item() for row, column in at]
    assert entropy.tolist() == pytest.approx(entropies, abs=1e-4)
    assert not entropy.requires_grad
    differentiable = ppo.action_logprobs(model, batch, entropy="differentiable")[1]
    assert differentiable.requires_grad


def with_old(batch: dict[str, Tensor], shift: float = 0.0) -> dict[str, Tensor]:
    batch["old_logprobs"] = torch.zeros(batch["tokens"].shape)
    with torch.no_grad():
        batch["old_logprobs"][batch["actions"]] = ppo.action_logprobs(tiny_llama(), batch)[0] + shift
    return batch


def test_policy_is_a_sum_over_actions_with_their_number_as_weight() -> None:
    batch = with_old(rows())
    loss = ppo.policy()(tiny_llama(), batch)
    assert loss.weight.item() == 12
    assert loss.total.item() == pytest.approx(-batch["advantages"][batch["actions"]].sum().item(), abs=1e-5)
    means = {name: (total / count).item() for name, (total, count) in loss.metrics.items()}
    assert means["val/ratio"] == 1
    assert means["policy/approxkl"] == means["policy/clipfrac"] == means["policy/approxkl_k1"] == 0
    assert means["objective/entropy"] > 0


def test_approximate_kl_is_reported_by_k1_and_k3() -> None:
    batch = with_old(rows(), shift=0.1)  # every ratio is exp(-0.1)
    metrics = ppo.policy()(tiny_llama(), batch).metrics
    assert (metrics["policy/approxkl_k1"][0] / 12).item() == pytest.approx(0.1, abs=1e-5)
    assert (metrics["policy/approxkl"][0] / 12).item() == pytest.approx(math.exp(-0.1) - 1 + 0.1, abs=1e-5)


def test_importance_weights_are_truncated() -> None:
    batch = with_old(rows())
    batch["advantages"] = torch.ones(2, 12)
    batch["rollout_logprobs"] = batch["old_logprobs"] - math.log(2.0)  # training is twice as sure as the rollout was
    assert ppo.policy(importance_cap=3.0)(tiny_llama(), batch).total.item() == pytest.approx(-24, abs=1e-4)
    assert ppo.policy(importance_cap=1.5)(tiny_llama(), batch).total.item() == pytest.approx(-18, abs=1e-4)


def test_entropy_bonus_has_a_gradient() -> None:
    batch = with_old(rows())
    batch["advantages"] = torch.zeros(2, 12)
    model = tiny_llama()
    loss = ppo.policy(entropy_coefficient=0.5)(model, batch)
    assert loss.total.item() == pytest.approx(-0.5 * loss.metrics["objective/entropy"][0].item(), rel=1e-5)
    loss.total.backward()
    assert sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None) > 0


def gradients(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_ptx_adds_the_coefficient_times_the_language_model_mean_to_the_full_actor_mean() -> None:
    coefficient = 27.8
    batch = with_old(rows())
    pretraining = {
        "tokens": torch.randint(1, 250, (3, 16), generator=torch.Generator().manual_seed(2)),
        "documents": torch.ones(3, 16, dtype=torch.int64),
    }
    pretraining["targets"] = pretraining["tokens"].roll(-1, dims=1)
    pretraining["targets"][:, -1] = -100
    num_ptx_tokens = 3 * 15

    model = tiny_llama()
    actor = ppo.policy()(model, batch)
    language = causal_lm(model, pretraining)
    (actor.total / actor.weight + coefficient * language.total / language.weight).backward()
    expected = gradients(model)

    # As the loop and the trainer do it: in micro-batches that hold unequal parts of both, divided once at the end.
    model = tiny_llama()
    scale = torch.tensor(coefficient * 12 / num_ptx_tokens)
    weight = torch.zeros(())
    for row, part in ((0, slice(0, 1)), (1, slice(1, 3))):
        piece = {name: values[row : row + 1] for name, values in batch.items()}
        piece |= {f"ptx_{name}": values[part] for name, values in pretraining.items()} | {"ptx_scale": scale}
        loss = ppo.policy()(model, piece)
        loss.total.backward()
        weight += loss.weight
        assert "ptx/loss" in loss.metrics
    assert torch.allclose(gradients(model) / weight, expected, atol=1e-5, rtol=1e-4)


def test_value_objective() -> None:
    critic, batch = ValueModel(tiny_llama()), rows()
    loss = ppo.value(clip=0.2, coefficient=0.1)(critic, batch)
    assert loss.weight.item() == 12
    expected = 0.5 * batch["returns"][batch["actions"]].square().sum().item()  # a critic starts at zero
    assert loss.total.item() == pytest.approx(0.1 * expected, rel=1e-5)
    assert loss.metrics["value/loss"][0].item() == pytest.approx(expected, rel=1e-5)


def test_losses_do_not_depend_on_how_rows_are_cut() -> None:
    batch, model = with_old(rows(), shift=0.05), tiny_llama()
    whole = ppo.policy()(model, batch)
    parts = [ppo.policy()(model, {name: t[r : r + 1] for name, t in batch.items()}) for r in range(2)]
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), abs=1e-5)
    assert sum(part.weight.item() for part in parts) == whole.weight.item()
