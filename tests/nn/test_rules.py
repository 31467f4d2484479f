"""Windows, ALiBi, softcaps and scales against a loop over queries, in every cache and on every path."""

import itertools

import pytest
import torch
from torch import Tensor

from chatloom.nn.cache import Causal, Packed, Rule
from chatloom.nn.positions import alibi_slopes

RULES = [
    Rule(window=4),
    Rule(alibi=True),
    Rule(softcap=2.0),
    Rule(scale=0.9),
    Rule(scale=0.3, window=3, softcap=1.5),
    Rule(scale=0.3, window=70, alibi=True),
    Rule(softcap=3.0, alibi=True),
]
DOCUMENTS = torch.tensor([[1] * 40 + [2] * 50 + [0] * 6, [1] * 96])


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def one_by_one(query: Tensor, key: Tensor, value: Tensor, rule: Rule, documents: Tensor) -> Tensor:
    """Attention of every query by itself, from the definition."""
    batch, heads, time, width = query.shape
    group = heads // key.shape[1]
    slopes = alibi_slopes(heads)
    rows = []
    for row, head, at in itertools.product(range(batch), range(heads), range(time)):
        first = 0 if rule.window is None else max(0, at - rule.window + 1)
        places = [place for place in range(first, at + 1) if documents[row, place] == documents[row, at]]
        scores = key[row, head // group, places] @ query[row, head, at]
        scores = scores * (width**-0.5 if rule.scale is None else rule.scale)
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        if rule.alibi:
            scores = scores - slopes[head] * torch.tensor([float(at - place) for place in places])
        rows.append(scores.softmax(0) @ value[row, head // group, places])
    return torch.stack(rows).view(batch, heads, time, width)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["causal", "packed"])
def test_attention_and_its_gradients(rule: Rule, packed: bool) -> None:
    documents = DOCUMENTS[:, 30:54] if packed else torch.ones(2, 24)
    cache = Packed(documents) if packed else Causal()
    tensors = [drawn(2, 4, 24, 8, seed=0), drawn(2, 2, 24, 8, seed=1), drawn(2, 2, 24, 8, seed=2)]
    found, expected = cache.attend(0, *tensors, rule=rule), one_by_one(*tensors, rule, documents)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(found)
    for a, b in zip(torch.autograd.grad(found, tensors, gradient), torch.autograd.grad(expected, tensors, gradient)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("cache", [Causal(), Packed(DOCUMENTS)], ids=["causal", "packed"])
def test_bf16_in_blocks_is_near_fp32(rule: Rule, cache: Causal | Packed) -> None:
    narrow = [drawn(2, 4, 96, 16, seed=seed, dtype=torch.bfloat16) for seed in range(3)]
    wide = [tensor.detach().float().requires_grad_() for tensor in narrow]
    found, expected = cache.attend(0, *narrow, rule=rule), cache.attend(0, *wide, rule=rule)
    gradient = torch.randn_like(expected)
    pairs = [(found, expected), *zip(torch.autograd.grad(found, narrow, gradient.bfloat16()),
                                     torch.autograd.grad(expected, wide, gradient))]  # fmt: skip
    for a, b in pairs:
        assert float((a - b).detach().norm() / b.detach().norm()) < 0.02


def test_a_window_wider_than_the_row_changes_nothing() -> None:
    tensors = [drawn(1, 2, 10, 8, seed=seed) for seed in range(3)]
    assert torch.equal(Causal().attend(0, *tensors, rule=Rule(window=10)), Causal().attend(0, *tensors))


def test_alibi_slopes_by_hand() -> None:
    assert alibi_slopes(4).tolist() == [2**-2, 2**-4, 2**-6, 2**-8]
    assert alibi_slopes(3).tolist() == [2**-4, 2**-8, 2**-2]  # two heads' and the first of four
