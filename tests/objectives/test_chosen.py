"""The sliced log-probabilities against torch's own, numbers and gradients."""

import pytest
import torch

from chatloom.objectives import chosen
from chatloom.objectives.chosen import _at_once, chosen_logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 5, 7])
def test_numbers_and_gradients(
    rows: int, dtype: torch.dtype, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen, "_SLICE", 80)  # two rows a slice, so that slices meet in the middle
    generator = torch.Generator().manual_seed(rows)
    logits = (4 * torch.randn(rows, 33, generator=generator)).to(dtype)
    before = logits.clone()
    tokens = torch.randint(33, (rows,), generator=generator)
    tokens[::2] = logits.argmax(1)[::2]
    upstream = torch.randn(rows, generator=generator)
    results = []
    for function in (chosen_logprobs, _at_once):
        leaf = logits.clone().requires_grad_()
        logprobs, entropies, likeliest = function(leaf, tokens, temperature=temperature, entropy=True)
        assert not entropies.requires_grad
        (gradient,) = torch.autograd.grad((logprobs * upstream).sum(), leaf)
        assert gradient.dtype == dtype
        results.append((logprobs, entropies, gradient.float()))
        assert likeliest[::2].all()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-5}
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, **tolerance)
    assert torch.equal(logits, before)


def test_the_logits_stay_what_they_are() -> None:
    logits = torch.randn(4, 9, requires_grad=True)
    with torch.no_grad():
        before = logits.clone()
    chosen_logprobs(logits, torch.arange(4), temperature=0.5, entropy=True)[0].sum().backward()
    assert torch.equal(logits, before)


def test_numbers_that_are_none_are_not_hidden() -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = float("nan")
    logprobs, _, _ = chosen_logprobs(logits, torch.tensor([0, 0]))
    assert logprobs.isnan().tolist() == [False, True]
