"""The mixture against a loop over tokens; the router's losses by hand."""

import math

import pytest
import torch

from chatloom.nn.experts import Experts, load_balancing, router_z


@pytest.mark.parametrize("renormalise", [True, False])
def test_each_token_goes_to_its_experts(renormalise: bool) -> None:
    torch.manual_seed(0)
    mixture = Experts(8, 12, num_experts=5, experts_per_token=2, renormalise=renormalise)
    x = torch.randn(2, 7, 8)
    found = mixture(x)
    for row in range(2):
        for at in range(7):
            probabilities = mixture.router(x[row, at]).softmax(-1)
            best = probabilities.argsort(descending=True)[:2].tolist()
            whole = sum(probabilities[expert] for expert in best) if renormalise else 1.0
            expected = sum(probabilities[expert] / whole * mixture.experts[expert](x[row, at]) for expert in best)
            torch.testing.assert_close(found[row, at], expected)


def test_every_weight_has_a_gradient_even_if_nobody_chose_its_expert() -> None:
    mixture = Experts(8, 12, num_experts=16, experts_per_token=1)
    mixture(torch.randn(1, 2, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in mixture.parameters())


def test_routing_is_kept_in_training_alone() -> None:
    mixture = Experts(8, 12, num_experts=3, experts_per_token=1)
    mixture(torch.randn(2, 4, 8))
    assert mixture.routing is not None
    assert mixture.routing.shape == (2, 4, 3)
    mixture.eval()(torch.randn(2, 4, 8))
    assert mixture.routing is None


def test_load_balancing_by_hand() -> None:
    # Two experts. Probabilities (3/4, 1/4) for three tokens and (1/4, 3/4) for one: f = (3/4, 1/4), P = (5/8, 3/8).
    likely = math.log(3.0)
    routing = torch.tensor([[likely, 0.0], [likely, 0.0], [likely, 0.0], [0.0, likely]])
    expected = 2 * (3 / 4 * 5 / 8 + 1 / 4 * 3 / 8)
    assert load_balancing(routing, experts_per_token=1).item() == pytest.approx(expected)
    # Balanced, the loss is k: 1 for one expert a token, 2 for two.
    even = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert load_balancing(even, experts_per_token=1).item() == pytest.approx(1.0)
    assert load_balancing(even, experts_per_token=2).item() == pytest.approx(2.0)


def test_router_z_by_hand() -> None:
    routing = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    assert router_z(routing).item() == pytest.approx((math.log(2) ** 2 + math.log(4) ** 2) / 2)
