"""KL estimators: by hand, and against the exact divergence of two small distributions."""

import pytest
import torch

from chatloom.rl.kl import estimate


def test_three_tokens_by_hand() -> None:
    logprobs, reference = torch.log(torch.tensor([0.5, 0.2, 0.4])), torch.log(torch.tensor([0.5, 0.4, 0.2]))
    assert estimate(logprobs, reference, "k1").tolist() == pytest.approx([0, -0.693147, 0.693147], abs=1e-5)
    assert estimate(logprobs, reference, "k2").tolist() == pytest.approx([0, 0.240227, 0.240227], abs=1e-5)
    k3 = [0, 2 - 1 - 0.693147, 0.5 - 1 + 0.693147]  # ref/p - 1 - log(ref/p)
    assert estimate(logprobs, reference, "k3").tolist() == pytest.approx(k3, abs=1e-5)


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative() -> None:
    policy = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    exact = float((policy * (policy / reference).log()).sum())
    for name in ("k1", "k3"):
        assert float((policy * estimate(policy.log(), reference.log(), name)).sum()) == pytest.approx(exact)
    assert (estimate(policy.log(), reference.log(), "k3") >= 0).all()
    assert (estimate(policy.log(), reference.log(), "k1") < 0).any()


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: k1, k2, k3"):
        estimate(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]
